{#- Takes back what init.sls did, in reverse. Leaves the package (unless lookup:remove_package),
    monit running and enabled if it had a control file of its own, directories that held our files,
    and CBSD's module if cbsd_module.sls installed it; that renders its rules at an env's next
    start. #}
{%- from "cbsd_monit/map.jinja" import lookup, paths with context %}
{%- from "cbsd_monit/minion.jinja" import conf, masterless, restart with context %}

cron no longer wakes the agent:
  file.absent:
    - name: {{ lookup.cron | json }}

CBSD's hooks are as they were:
  cbsd_monit.hooks_absent:
    - spec: {{ paths | json }}

No env has anything of cbsd_monit:
  cbsd_monit.checks_absent:
    - spec: {{ paths | json }}
    - require:
      - cbsd_monit: CBSD's hooks are as they were

monit's control file is as it was:
  cbsd_monit.include_absent:
    - name: {{ lookup.monitrc | json }}
    - spec: {{ paths | json }}
    - require:
      - cbsd_monit: No env has anything of cbsd_monit
{%- set wake = lookup.libexec ~ "/wake" %}

The agent has finished what it was healing:
  cmd.run:
    - name: {{ (wake ~ " quit") | json }}
    - stdin: ''
    - onlyif:
      - fun: file.file_exists
        path: {{ wake | json }}
    - require:
      - file: cron no longer wakes the agent
      - cbsd_monit: CBSD's hooks are as they were
    - require_in:
      - cbsd_monit: No env has anything of cbsd_monit
{%- for what in ["libexec", "config", "state", "run"] %}

The agent has left {{ lookup[what] }}:
  file.absent:
    - name: {{ lookup[what] | json }}
    - require:
      - file: cron no longer wakes the agent
      - cbsd_monit: monit's control file is as it was
{%- endfor %}

The minion no longer starts the engine:
  file.absent:
    - name: {{ conf | json }}
{%- if not masterless %}
{{ restart(lookup.minion_restart, "The minion no longer starts the engine") }}
{%- endif %}
{%- if lookup.remove_package and lookup.package %}

monit is not installed:
  pkg.removed:
    - name: {{ lookup.package | json }}
    - require:
      - cbsd_monit: monit's control file is as it was
{%- endif %}
