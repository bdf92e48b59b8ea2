# cbsd_monit: env %%JNAME%%
check file "%%ENV%%.env" with path "%%DEAD%%"
  onreboot laststate
  if exist then exec "%%WAKE%% monit %%ENV%%.env" repeat every 3 cycles

check host "%%ENV%%.c" with address "%%ADDRESS%%"
  onreboot laststate
  depends on "%%ENV%%.env"
  every 3 cycles
  if failed port 53 type udp protocol dns with timeout 5 seconds for 3 cycles
    then exec "%%WAKE%% monit %%ENV%%.c" repeat every 1 cycles
    else if succeeded for 1 cycles then exec "%%WAKE%% monit %%ENV%%.c"
