{#- monit runs now and after a boot, and cron watches the watcher. #}
{%- from "cbsd_monit/map.jinja" import lookup, paths with context %}

include:
  - cbsd_monit.agent
  - cbsd_monit.config

cron lets the agent look at the node each minute:
  file.managed:
    - name: {{ lookup.cron | json }}
    - contents: {{ ("* * * * * root " ~ lookup.libexec ~ "/wake sync") | json }}
    - user: root
    - group: {{ lookup.rootgroup | json }}
    - mode: '0644'
    - makedirs: true
    - require:
      - sls: cbsd_monit.agent

{%- if lookup.service and "service.enable" in salt %}

monit is enabled and runs:
  service.running:
    - name: {{ lookup.service | json }}
    - enable: true
    - require:
      - sls: cbsd_monit.config
{%- elif lookup.service %}

monit is enabled and runs:
  test.fail_without_changes:
    - comment: >-
        Salt {{ grains["saltversion"] }} has no service module for {{ grains["os"] }}: install
        saltext-freebsd into Salt's Python, or set cbsd_monit:lookup:service to false (then monit is
        started by the agent, and enabling it at boot is yours).
{%- endif %}

monit knows what is published:
  cbsd_monit.running:
    - spec: {{ paths | json }}
    - require:
      - sls: cbsd_monit.config
