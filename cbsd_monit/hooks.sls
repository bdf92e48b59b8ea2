{#- CBSD's hooks, in the skeletons and in every env there is. #}
{%- from "cbsd_monit/map.jinja" import paths with context %}

include:
  - cbsd_monit.agent

CBSD announces starts, stops and removals of every env:
  cbsd_monit.hooks_present:
    - spec: {{ paths | json }}
    - require:
      - sls: cbsd_monit.agent
