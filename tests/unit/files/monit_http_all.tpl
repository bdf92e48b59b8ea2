# cbsd_monit: env %%JNAME%%
check file "%%ENV%%.env" with path "%%DEAD%%"
  onreboot laststate
  if exist then exec "%%WAKE%% monit %%ENV%%.env" repeat every 3 cycles

check host "%%ENV%%.c" with address "2001:db8::1"
  onreboot laststate
  depends on "%%ENV%%.env"
  every 3 cycles
  if failed port 443 protocol https method GET request "/status?full=1" status = 200 hostheader "%%JNAME%%.example.org" with http headers [X-A: "a", X-B: "b, c"] content = "\0x2f\0x22OK\\.\0x27" with ssl options {verify: enable} and certificate valid > 14 days with timeout 2 seconds for 2 times within 5 cycles
    then exec "%%WAKE%% monit %%ENV%%.c" repeat every 1 cycles
    else if succeeded for 2 cycles then exec "%%WAKE%% monit %%ENV%%.c"
