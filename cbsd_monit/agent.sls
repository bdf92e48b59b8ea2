{#- The agent, and the script that hooks, monit and cron run.  Neither needs Salt afterwards. #}
{%- from "cbsd_monit/map.jinja" import lookup with context %}

The agent of cbsd_monit is installed:
  file.recurse:
    - name: {{ (lookup.libexec ~ "/agent") | json }}
    - source: salt://cbsd_monit/files/agent
    - exclude_pat: E@__pycache__
    - clean: true
    - user: root
    - group: {{ lookup.rootgroup | json }}
    - dir_mode: '0755'
    - file_mode: '0644'

The script that hooks, monit and cron run is installed:
  file.managed:
    - name: {{ (lookup.libexec ~ "/wake") | json }}
    - source: salt://cbsd_monit/files/wake.jinja
    - template: jinja
    - user: root
    - group: {{ lookup.rootgroup | json }}
    - mode: '0755'
    - context:
        python: {{ lookup.python | json }}
        libexec: {{ lookup.libexec | json }}
        config: {{ lookup.config | json }}
        state: {{ lookup.state | json }}
        run: {{ lookup.run | json }}
    - require:
      - file: The agent of cbsd_monit is installed

The agent's records are kept where only root can read them:
  file.directory:
    - name: {{ lookup.state | json }}
    - user: root
    - group: {{ lookup.rootgroup | json }}
    - mode: '0700'
    - makedirs: true
