{#- CBSD's own module monit, for those who want `cbsd monit jname=ENV` beside this formula; not part
    of init.sls, and nothing needs it.  Does the same as `cbsd module mode=install monit`, which
    fetches from one fixed address, takes an empty directory for an installed module, and cannot say
    what it would do. #}
{%- from "cbsd_monit/map.jinja" import lookup with context %}
{%- set workdir = lookup.workdir or salt["cbsd.paths"]()["workdir"] %}

CBSD's module monit is fetched:
  git.cloned:
    - name: {{ lookup.module_url | json }}
    - target: {{ (lookup.distdir ~ "/modules/monit.d") | json }}

CBSD's module monit is switched on:
  file.append:
    - name: {{ (workdir ~ "/etc/modules.conf") | json }}
    - text: monit.d
    - require:
      - git: CBSD's module monit is fetched

CBSD knows the command monit:
  cmd.run:
    - name: {{ ((lookup.distdir ~ "/sudoexec/initenv") | quote ~ " inter=0") | json }}
    - stdin: ''
    - env:
        workdir: {{ workdir | json }}
        NOCOLOR: '1'
    - creates: {{ (workdir ~ "/modules/monit") | json }}
    - require:
      - file: CBSD's module monit is switched on
