{#- Everything, in this order.  clean.sls takes it back. #}

include:
  - cbsd_monit.package
  - cbsd_monit.agent
  - cbsd_monit.config
  - cbsd_monit.hooks
  - cbsd_monit.checks
  - cbsd_monit.service
