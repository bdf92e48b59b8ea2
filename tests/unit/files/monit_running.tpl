# cbsd_monit: env %%JNAME%%
check file "%%ENV%%.env" with path "%%DEAD%%"
  onreboot laststate
  if exist then exec "%%WAKE%% monit %%ENV%%.env" repeat every 3 cycles

check file "%%ENV%%.c" with path "%%DEAD%%"
  onreboot laststate
  every 2 cycles
  if exist for 3 cycles
    then exec "%%WAKE%% monit %%ENV%%.c" repeat every 2 cycles
    else if succeeded for 1 cycles then exec "%%WAKE%% monit %%ENV%%.c"
