{#- The one line in monitrc.  It replaces the include line of CBSD's documentation; clean.sls puts
    that back. #}
{%- from "cbsd_monit/map.jinja" import lookup, paths with context %}

include:
  - cbsd_monit.package
  - cbsd_monit.agent

monit includes what cbsd_monit publishes:
  cbsd_monit.include_present:
    - name: {{ lookup.monitrc | json }}
    - spec: {{ paths | json }}
    - require:
      - sls: cbsd_monit.package
      - sls: cbsd_monit.agent
