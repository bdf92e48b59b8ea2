"""
Eight envs behind a network that swallows connections, with the storm guard and without it.

Real Salt, monit (poll 1 s) and agent; simulated CBSD, whose log says who was restarted, when and
beside whom.  What the envs serve is a socket of this process at their address, so that the network
can fail while the jails run.
"""

import contextlib
import json
import socket
import threading
import time

import pytest
from sim.kernel import full_queue

PORT = 9000
NAMES = [f"web{number}" for number in range(1, 9)]
SECONDS = 60
BUDGET = 2


class Address:
    """One env's address as others see it: it serves, swallows connections, or refuses them."""

    def __init__(self, address):
        self.address, self.sockets = address, []
        self.serves()

    def _close(self):
        for end in self.sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
            end.close()
        self.sockets = []

    def serves(self):
        self._close()
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.address, PORT))
        listener.listen(64)
        self.sockets = [listener]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    @staticmethod
    def _accept(listener):
        with contextlib.suppress(OSError):
            while True:
                listener.accept()[0].close()

    def swallows(self):
        self._close()
        self.sockets = full_queue(self.address, PORT)

    refuses = _close


class Town:
    """A node with eight envs, and a watch of another kind."""

    def __init__(self, node, net, budget, **defaults):
        self.node = node
        self.addresses = {
            name: f"127.77.{net}.{number + 11}" for number, name in enumerate([*NAMES, "other"])
        }
        self.net = {name: Address(address) for name, address in self.addresses.items()}
        for name, address in self.addresses.items():
            done = node.sim.cbsd("jcreate", f"jname={name}", f"ip4_addr={address}", "inter=0")
            assert done.returncode == 0, done.stdout
        check = {"type": "tcp", "port": PORT}
        self.pillar = {
            "monit": {"poll": "1s"},
            "defaults": {
                "interval": "1s",
                "timeout": "1s",
                "start_period": "0s",
                "restart": {"attempts": 50, "delay": "1s", "delay_function": "constant"},
                **defaults,
            },
            "budget": {"max_concurrent": BUDGET, **budget},
            "envs": {name: {"checks": {"app": check}} for name in NAMES},
        }
        self.pillar["envs"]["other"] = {
            "checks": {"app": {**check, "on_failure": "alert", "failure_threshold": 1}}
        }

    def begin(self):
        (self.node.state_dir / "spool").mkdir(parents=True, exist_ok=True)
        self.node.pillar(self.pillar)
        results = self.node.apply()
        assert all(r["result"] for r in results), self.node.summary(results)
        for name in self.addresses:
            self.node.sim.cbsd("jstart", "inter=0", f"jname={name}")
        self.healthy(*self.addresses)
        return self

    def healthy(self, *names, seconds=60):
        late = [n for n in names if not self.node.wait_state(n, "healthy", seconds)]
        assert not late, (
            f"{late}: {json.dumps(self.node.status(), indent=1)}\n{self.node.agent_log()}"
        )

    def told(self, since):
        """All transitions since a moment: [(time, env, transition)]."""
        found = [r for name in self.addresses for r in self.node.history(name)]
        for path in (self.node.state_dir / "spool").glob("*.jsonl"):
            found += [r for r in map(json.loads, path.open()) if r["env"] == "(node)"]
        return sorted((r["time"], r["env"], r["transition"]) for r in found if r["time"] >= since)

    def told_of(self, name, transition, since, seconds=30):
        """When ``name`` came into a state, after ``since``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for moment, env, told in self.told(since):
                if (env, told) == (name, transition):
                    return moment
            time.sleep(0.02)
        raise AssertionError(
            f"{name} is not {transition}: {self.told(since)}\n{self.node.agent_log()}"
        )

    def works(self, since):
        """What CBSD did to the envs: [(env, verb, began, ended)]; what has not ended ends now."""
        begun, found = {}, []
        for r in self.node.sim.log():
            if r["t"] < since or r["argv"][0] not in ("jstart", "jstop", "jrestart"):
                continue
            name = next(a[6:] for a in r["argv"] if a.startswith("jname="))
            if r["event"] == "start":
                begun[r["pid"]] = (name, r["argv"][0], r["t"])
            elif r["pid"] in begun:
                found.append((*begun.pop(r["pid"]), r["t"]))
        return sorted(
            [*found, *((*b, time.time()) for b in begun.values())], key=lambda work: work[2]
        )


def overlaps(spans):
    """The most spans (began, ended) that hold at one moment."""
    edges = sorted([(began, 1) for began, _ in spans] + [(ended, -1) for _, ended in spans])
    now = most = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


def restarts(works):
    """[(env, began, ended)]: a stop, the start that follows it, and the time between."""
    found, stopped = [], {}
    for name, verb, began, ended in works:
        if verb == "jstop":
            stopped[name] = began
        elif verb == "jstart":
            found.append((name, stopped.pop(name, began), ended))
    return [*found, *((name, began, time.time()) for name, began in stopped.items())]


@pytest.fixture(scope="module")
def unguarded(salt_node):
    """No storm is seen below nine envs; each restart takes 2 s, and none of them helps."""
    town = Town(salt_node("hv1"), 30, {"storm_min": 9}, failure_threshold=2).begin()
    for name in NAMES:
        town.node.sim.slow(name, start=1, stop=1)
    town.began = time.time()
    for name in NAMES:
        town.net[name].swallows()
    yield town
    for address in town.net.values():
        address.refuses()


@pytest.fixture(scope="module")
def guarded(salt_node, unguarded):
    """The guard by default; half of the envs count the first failure, half the second in a row."""
    town = Town(salt_node("hv2"), 31, {}, failure_threshold=2)
    for name in NAMES[::2]:
        town.pillar["envs"][name]["failure_threshold"] = 1
    yield town.begin()
    for address in town.net.values():
        address.refuses()


def test_storm_with_the_guard_restarts_nothing_is_told_once_and_passes(guarded):
    """The network fails for 25 s and comes back for all but one env: that one is healed."""
    town, since = guarded, time.time()
    for name in NAMES:
        town.net[name].swallows()
    time.sleep(25)
    assert town.works(since) == [], town.told(since)
    transitions = [t for _, _, t in town.told(since)]
    assert transitions.count("storm") == 1 and "healing" not in transitions, town.told(since)
    assert "(node)" in [env for _, env, t in town.told(since) if t == "storm"]
    again = time.time()
    jid = town.node.running()["web3"]
    for name in NAMES:
        if name == "web3":
            town.net[name].refuses()
        else:
            town.net[name].serves()
    end = time.monotonic() + 40
    while town.node.running().get("web3", jid) == jid and time.monotonic() < end:
        time.sleep(0.05)
    town.net["web3"].serves()
    town.healthy(*NAMES)
    assert [(name, verb) for name, verb, _, _ in town.works(since)] == [
        ("web3", "jstop"),
        ("web3", "jstart"),
    ], town.told(since)
    transitions = [(env, t) for _, env, t in town.told(again)]
    assert ("web3", "healed") in transitions and not [t for _, t in transitions if t == "storm"]


def detected(town):
    """A failure of `other` is told, and its end."""
    since = time.time()
    town.net["other"].refuses()
    moment = town.told_of("other", "warning", since)
    town.net["other"].serves()
    town.told_of("other", "healthy", moment)


def test_restart_of_30_s_delays_no_other_envs_detection(guarded):
    """Six failures are told while one stop goes on; `make bench` measures the delay of each."""
    town = guarded
    town.healthy(*NAMES, "other")
    town.node.sim.slow("web1", stop=30)
    since = time.time()
    town.net["web1"].refuses()
    assert town.node.wait_state("web1", "healing", 20)
    town.net["web1"].serves()
    for _ in range(6):
        detected(town)
    done = time.time()
    ((name, verb, _, ended), *_) = town.works(since)
    assert (name, verb) == ("web1", "jstop") and ended >= done, "it went on all the while"
    town.healthy("web1", seconds=60)
    ((_, _, began, ended), *_) = town.works(since)
    assert began < done < ended and ended - began >= 29
    town.node.sim.slow("web1")


def test_storm_without_the_guard_never_restarts_one_env_twice_at_once_nor_more_than_the_budget(
    unguarded,
):
    town = unguarded
    time.sleep(max(0.0, town.began + SECONDS - time.time()))
    works = town.works(town.began)
    done = restarts(works)
    assert len(done) >= 4, (works, town.node.agent_log())
    assert {name for name, _, _ in done} <= set(NAMES)
    for name in NAMES:
        assert overlaps([(began, ended) for env, _, began, ended in works if env == name]) <= 1, (
            name,
            works,
        )
        assert overlaps([(began, ended) for env, began, ended in done if env == name]) <= 1, (
            name,
            works,
        )
    assert overlaps([(began, ended) for _, began, ended in done]) == BUDGET, done
    assert "storm" not in [t for _, _, t in town.told(town.began)]
