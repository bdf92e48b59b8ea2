{#- The envs of a group, one after the other across the nodes, each healthy before the next:

    salt-run state.orchestrate cbsd_monit.orch.rolling_restart pillar='{"group": "web"}'

    Keys: group or env (a glob), tgt, tgt_type, max_parallel, min_healthy_time, healthy_deadline
    (both in seconds). #}
{%- set given = {} %}
{%- for key in ["group", "env", "tgt", "tgt_type", "max_parallel", "min_healthy_time",
                "healthy_deadline"] %}
{%- if salt["pillar.get"](key) %}{% do given.update({key: salt["pillar.get"](key)}) %}{% endif %}
{%- endfor %}

Every env is restarted and healthy before the next:
  salt.runner:
    - name: cbsd_monit.rolling_restart
{%- for key, value in given.items() %}
    - {{ key }}: {{ value | json }}
{%- endfor %}
