{#- What a user would otherwise write, the first thing that `make bench` compares with: one file.managed with a Jinja template per
    env in a loop, and one reload of monit that all of them trigger.  It validates, stages and keeps nothing.  The template is
    as cheap as one can be: no loop and no condition, so that what is measured is Salt's own price of a file.

    Served as `idiomatic/` of a file root; pillar `idiomatic`: {target: DIRECTORY, monit: PATH, monitrc: PATH, wake: PATH,
    envs: {NAME: ADDRESS}}.  Every env gets TARGET/NAME/monit/monitrc with three checks: http, tcp and running. #}
{%- set settings = pillar["idiomatic"] %}
{%- for name, address in settings.envs.items() %}

{{ settings.target }}/{{ name }}/monit/monitrc:
  file.managed:
    - source: salt://idiomatic/files/monitrc.jinja
    - template: jinja
    - mode: '0600'
    - makedirs: true
    - context:
        name: {{ name }}
        address: {{ address }}
        wake: {{ settings.wake }}
    - watch_in:
      - cmd: monit reads its rules again
{%- endfor %}

monit reads its rules again:
  cmd.wait:
    - name: {{ settings.monit }} -c {{ settings.monitrc }} reload
