"""The words for the states of an env, and the groups that the agent acts by."""

STATES = (
    "starting healthy failing healing backoff gave_up silenced maintenance slave quarantined "
    "stopped unknown"
).split()
ILL = ("starting", "failing", "healing", "backoff", "gave_up", "stopped")  # dependents wait for it
FAILS = ("failing", "healing", "backoff")  # a storm counts these
LEFT_ALONE = ("silenced", "maintenance", "slave")  # whatever the kernel shows
UNMONITORED = ("gave_up", "maintenance", "slave")  # monit does not look at it
UNPROBED = (*LEFT_ALONE, "gave_up")
LOUD = ("failing", "gave_up", "quarantined", "storm")  # transitions that go to syslog too
TRANSITIONS = (*STATES, "created", "removed", "renamed", "healed", "storm", "calm")
