{#- The package monit, unless lookup:package is false. #}
{%- from "cbsd_monit/map.jinja" import lookup with context %}

{%- if lookup.package %}
monit is installed:
  pkg.installed:
    - name: {{ lookup.package | json }}
{%- else %}
The package of monit is left to the operator:
  test.nop
{%- endif %}
