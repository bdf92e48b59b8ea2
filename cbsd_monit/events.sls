{#- This node's transitions reach the master's event bus.  Not part of init.sls: it needs a master,
    and restarts the minion once.  clean.sls takes it back. #}
{%- from "cbsd_monit/map.jinja" import lookup, settings with context %}
{%- from "cbsd_monit/minion.jinja" import conf, main, masterless, restart with context %}

{%- if masterless %}
Events need a master, and this minion has none; nothing is sent and nothing is missed here:
  test.nop
{%- else %}
{%- set spool = lookup.state ~ "/spool" %}
{%- set engine = salt["cp.hash_file"]("salt://_engines/cbsd_monit.py") or {} %}

include:
  - cbsd_monit.agent

Transitions are kept until the master has them:
  file.directory:
    - name: {{ spool | json }}
    - user: root
    - group: {{ lookup.rootgroup | json }}
    - dir_mode: '0700'
    - makedirs: true
    - order: 1  # so that the transitions of this very run are sent, too

What is kept is bounded in size and age:
  file.managed:
    - name: {{ (spool ~ "/limits.json") | json }}
    - contents: {{ (settings.get("events") or {}) | json | json }}
    - user: root
    - group: {{ lookup.rootgroup | json }}
    - mode: '0600'
    - require:
      - file: Transitions are kept until the master has them

The minion has the engine that sends them:
  saltutil.sync_engines: []
{%- set engines = "^engines *:" %}
{%- if salt["file.file_exists"](main) and salt["file.search"](main, engines, multiline=True) %}

The minion starts the engine:
  test.fail_without_changes:
    - comment: >-
        {{ main }} has an `engines` of its own, which a file in minion.d would replace: move it to
        minion.d, where such lists are joined.
{%- else %}

The minion starts the engine:
  file.managed:
    - name: {{ conf | json }}
    - contents: |
        # Managed by Salt: cbsd_monit.events.  The engine is {{ engine.get("hsum") }}.
        engines:
          - cbsd_monit:
              spool: {{ spool | json }}
    - user: root
    - group: {{ lookup.rootgroup | json }}
    - mode: '0644'
    - makedirs: true
    - require:
      - saltutil: The minion has the engine that sends them
      - file: What is kept is bounded in size and age
{{ restart(lookup.minion_restart, "The minion starts the engine") }}
{%- endif %}
{%- endif %}
