"""The words for the states of an env, and the groups that the agent acts by."""

STATES = (
    "starting healthy warning failing healing backoff gave_up silenced maintenance slave "
    "quarantined stopped unknown"
).split()
WELL = ("healthy", "warning")  # what only alerts is no illness
ILL = ("starting", "failing", "healing", "backoff", "gave_up", "stopped")  # dependents wait for it
FAILS = ("failing", "healing", "backoff")  # a storm counts these
RECOVERS = ("warning", "failing", "backoff", "gave_up", "quarantined")  # to healthy: `recovered`
LEFT_ALONE = ("silenced", "maintenance", "slave")  # whatever the kernel shows
UNMONITORED = ("gave_up", "maintenance", "slave")  # monit does not look at it
UNPROBED = (*LEFT_ALONE, "gave_up")
LOUD = ("warning", "failing", "gave_up", "quarantined", "storm")  # these go to syslog too
TRANSITIONS = (*STATES, "created", "removed", "renamed", "healed", "recovered", "storm", "calm")
NODE = "(node)"  # stands where the name of an env stands; no env can have it
