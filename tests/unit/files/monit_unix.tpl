# cbsd_monit: env %%JNAME%%
check file "%%ENV%%.env" with path "%%DEAD%%"
  onreboot laststate
  if exist then exec "%%WAKE%% monit %%ENV%%.env" repeat every 3 cycles

check program "%%ENV%%.c" with path "%%WAKE%% probe %%JNAME%% c" with timeout 10 seconds
  onreboot laststate
  depends on "%%ENV%%.env"
  every 3 cycles
  if status = 1 for 3 cycles
    then exec "%%WAKE%% monit %%ENV%%.c" repeat every 1 cycles
    else if succeeded for 1 cycles then exec "%%WAKE%% monit %%ENV%%.c"
