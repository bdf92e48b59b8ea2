#!jinja|json
{#- The checks and policies of all envs of this node, in one state and one pass of the agent.  JSON,
    because YAML takes seconds to read the pillar of a thousand envs. #}
{%- from "cbsd_monit/map.jinja" import spec with context %}
{
  "include": ["cbsd_monit.agent", "cbsd_monit.config"],
  "The checks of this node's envs are live": {
    "cbsd_monit.checks_present": [
      {"spec": {{ spec | json }}},
      {"require": [{"sls": "cbsd_monit.agent"}, {"sls": "cbsd_monit.config"}]}
    ]
  }
}
