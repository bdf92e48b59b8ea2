"""
One pass over the node: take in what the hooks said, look at kernel, inventory and monit, publish, judge every env.

Level, not edges: whatever woke us, the truth is derived anew, so a lost or repeated trigger changes nothing.
"""

import contextlib
import json
import os
import subprocess
import time

import cbsd
import files
import policy
import publish
import spool
import state
from monit import Monit
from node import NAME, AgentError

GONE = 30  # seconds between the rename of an env's row and that of its directory
REBOOT = 5  # seconds in which a guest that reboots may be gone from the kernel, and bhyverun.sh says why one is gone
VERIFY = (
    15  # seconds after a reload in which monit has to read what is published and to check something
)


class Pass:
    """The node as one pass saw it."""

    def __init__(self, node, overlay=None):
        self.node = node
        self.monit = Monit(node)
        self.publisher = publish.Publisher(node, self.monit)
        self.overlay = overlay or {}
        self.envs, self.found = {}, {}  # found: what lies in the envs' directories
        self.rows = {}
        self.kernel = None
        self.status = None
        self.quarantined = {}
        self.errors = {}
        self.services = {}
        self.foreign = {}
        self.missing = set()
        self.managed, self.moving = set(), set()
        self.changed = []
        self.warnings = []
        self.held = None
        self.verify_wait = 0.0
        self.reloaded = self.started = self.unsettled = False
        self.due = []
        self.told, self.suspects, self.soon = (
            {},
            set(),
            None,
        )  # policies; whose last run failed; when to look again
        self.looked = {}  # when monit ran the check last by which an env fails

    # Reading

    def look(self, dry=False, until=None):
        """
        Read everything; with ``dry`` nothing is written.

        ``until`` names an env that the caller has to know for certain: hooks of it are waited for, those of others are
        left to the next pass.
        """
        node = self.node
        inbox, broken = self._one_moment(dry, until)
        self.trust = files.read_json(node.in_state("trust.json"), {})
        self.managed = {n for n in self.rows if self._managed(n)}
        names = self.managed | {
            f[:-5] for f in os.listdir(node.in_state("envs")) if f.endswith(".json")
        }
        names |= {n for n in {r.env for _, r in inbox} - names if self._managed(n)}
        for name in sorted(names):
            if NAME.match(name):
                self.envs[name] = state.Env(node, name, self.found.get(name))
        for name in broken & set(self.envs):
            self.errors[name] = (
                "its row in CBSD's inventory cannot be read: a value holds a | or a line break"
            )
            self.envs.pop(name)  # neither judged nor forgotten; what was published for it stays
        self.moving &= set(self.envs)
        for name in [n for n in self.moving if self.envs[n].new]:
            del self.envs[name]
        self.unsettled = bool(self.moving)
        if not dry:
            self._take([(path, record) for path, record in inbox if record.env not in self.moving])
        self.silences = policy.silences(node)

    def _one_moment(self, dry, until):
        """
        Inbox, inventory and kernel as of one moment: no hook of an env may have spoken while the kernel was asked.

        A start that is announced after we looked at the kernel would make a jail that just came up look dead, and a
        stop that is announced just before would make it look crashed. Envs whose hooks do not cease are ``moving``:
        nothing is known of them in this pass, and none of their records is taken, because a directory that is read while
        files are added may show the second without the first.
        """
        for tries in range(100):
            inbox = [] if dry else state.read_inbox(self.node)
            try:
                self.kernel = cbsd.kernel(self.node)
                self.errors.pop("(kernel)", None)
            except AgentError as err:
                self.kernel = None
                self.errors["(kernel)"] = str(err)
            self.rows, broken = cbsd.inventory(
                self.node
            )  # after the kernel: CBSD writes what it did after it was done
            if dry:
                break
            before = {path for path, _ in inbox}
            self.moving = {
                record.env for path, record in state.read_inbox(self.node) if path not in before
            }
            if not self.moving or tries and until not in self.moving:
                break
        return inbox, broken

    def _take(self, inbox):
        """Let what the hooks said, and what no hook said, change what is known of the envs."""
        for _, record in inbox:
            env = self.envs.get(record.env)
            if env is not None:
                self._rename(env)
                state.apply(env, record)
            else:
                self._unwatched(record)
        for env in self._settled():
            self._rename(env)
        for env in self._settled():
            if env.name not in self.managed:
                self._departed(env)
                continue
            if (env["phase"], env["cause"]) == ("removing", "gone"):
                env.enter_phase(None)  # it is there again
            if env.new:
                self._arrived(env)
            self._unannounced(env)
            env.save()
        if inbox:
            files.flush()  # what the hooks said is kept before it is forgotten
            state.drop_inbox([path for path, _ in inbox])

    def _settled(self):
        """The envs of which something can be said in this pass."""
        return [env for name, env in sorted(self.envs.items()) if name not in self.moving]

    def _managed(self, name):
        """An env is ours when a template lies in its directory, whoever put it there."""
        if name in self.overlay:
            return self.overlay[name] is not None
        self.found[name] = state.texts(self.node, name)
        return self.found[name][0]["monitrc.tpl"] is not None

    def _up(self, env):
        """Whether the kernel runs it, or None."""
        emulator = self.rows[env.name]["emulator"] if env.name in self.rows else env["emulator"]
        return None if self.kernel is None else env.name in self.kernel.get(emulator, ())

    def _rename(self, env):
        """Give an env that is seen for the first time what is known of it under another name, if it had one here."""
        if not env.new or env.name not in self.rows:
            return
        before = self._former_name(env)
        if before is None or before == env.name:
            return
        env.dir.remove("monitrc")  # it says the other name
        old = self.envs.get(before)
        if (
            before in self.rows
            or old is None
            or old.new
            or (old["phase"], old["cause"]) == ("removing", "remove")
        ):
            env.dir.remove(
                "history.jsonl"
            )  # a copy: what happened to the original did not happen to it
            return
        if (old["phase"], old["cause"]) == ("removing", "gone"):
            old.enter_phase(None)
        env.data.update({**old.data, "env": env.name})
        env.fresh = False
        env.tell("renamed", f"was {before}")
        env.save()
        files.flush()  # before the only other place that has it is removed
        self._move_silence(before, env.name)
        old.forget()
        del self.envs[before]

    def _former_name(self, env):
        """The name that the directory of ``env`` was last used under, here or elsewhere; None where nothing tells."""
        names = [record.get("env") for record in env.history()[-1:]]
        with contextlib.suppress(ValueError, RecursionError, AttributeError):
            names.append(json.loads(env.files()[0]["policy.json"] or "{}").get("env"))
        return next((name for name in names if isinstance(name, str) and NAME.match(name)), None)

    def _arrived(self, env):
        """An env seen for the first time: created, adopted, cloned, imported or migrated to this node."""
        up = self._up(env)
        env["emulator"] = self.rows[env.name]["emulator"]
        if (
            env["intent"] is None
        ):  # no hook said so: an env that is down may well be meant to be down
            env.intend("running" if up else "stopped", "first seen")
        if up and env["started"] is None:
            env["started"] = self.node.stamp()
        env["attempts"] = policy.attempts_of(env)
        env.tell("created", "first seen " + ("running" if up else "stopped"))

    def _unwatched(self, record):
        """An env without a template was created or started: pillar may name it, and only Salt can know."""
        transition = {"master_create.d": "created", "master_poststart.d": "started"}.get(
            record.hook
        )
        if transition and NAME.match(record.env):
            emulator = record.environ.get("emulator")
            spool.append(
                self.node, spool.event(self.node, transition, record.env, emulator, "not watched")
            )

    def _departed(self, env):
        """
        An env that is no longer in CBSD's inventory, or has no template any more.

        CBSD renames the row first and the directory some time later, and announces neither: unless ``remove.d`` ran, what
        is known of an env is kept for a moment, in which it may turn up under another name.
        """
        del self.envs[env.name]
        if env.name in self.rows and os.path.isdir(self.node.sysdir(env.name)):
            state.say(f"{env.name}: no template any more, not watched")
            env.forget()
            return
        if env.new or (env["phase"], env["cause"]) == ("removing", "remove"):
            gone = True
        elif (env["phase"], env["cause"]) == ("removing", "gone"):
            gone = env.age("phase_since") > GONE
        else:
            env.enter_phase("removing", "gone")
            env["reason"] = "CBSD's inventory has it no more"
            gone = False
        if gone:
            if not env.new:
                env.tell("removed")
            env.forget()
            self._move_silence(env.name, None)
        else:
            env.save()
            files.remove(self.node.dead_marker(env.name))

    def _move_silence(self, old, new):
        """A silence given by command follows the env to its new name, and ends with it (``new`` None)."""
        path = self.node.in_state("silences.json")
        given = files.read_json(path, [])
        moved = [
            {**s, "env": new} if s["env"] == old else s for s in given if new or s["env"] != old
        ]
        if moved != given:
            files.write_json(path, moved)

    def _unannounced(self, env):
        """What the kernel shows and no hook told: started, stopped, or up again after the guest rebooted."""
        up = self._up(env)
        if up is None or env["op"]:
            return
        if (
            env["phase"] == "restarting"
            and env["cause"] == "guest"
            and up
            and env.age("phase_since") > REBOOT
        ):
            env.enter_phase(None)
        waited = (env["phase"], env["cause"]) == ("stopping", "gone") and env.age(
            "phase_since"
        ) > REBOOT
        if waited or (env["phase"], env["cause"]) == ("stopping", "gone") and up:
            env.enter_phase(None)
        boots = env["phase"] == "booting" or env["boot"] != self.node.boot
        if env["phase"] and not boots:
            return
        started = env["started"]
        if up and (started is None or started["b"] != self.node.boot):
            if env["intent"] == "running":  # somebody took it in hand
                env["gave_up"] = False
                if not boots:
                    env.reset_attempts()
            env["started"], env["warm"] = self.node.stamp(), False
        elif not up and not boots:
            if env["intent"] == "running" and started is not None and not waited:
                if env["emulator"] == "bhyve" or not self._linked(env):
                    # The guest ended or reboots, and bhyverun.sh tells CBSD a moment later; or CBSD is about to write
                    # what it could not tell.
                    env.enter_phase("stopping", "gone")
                    return
            elif env["intent"] == "running" and waited and self._stopped_unseen(env):
                env.intend(
                    "stopped", "unannounced", "CBSD has it off, and its stop hooks are not linked"
                )
            env["started"] = None

    def _stopped_unseen(self, env):
        """True if CBSD itself has written that the env is off and could not tell us: that is no crash."""
        row = self.rows[env.name]
        return row["status"] == "0" and row["jid"] in ("", "0") and not self._linked(env)

    def _linked(self, env):
        return os.path.lexists(
            os.path.join(self.node.sysdir(env.name), "master_prestop.d", "cbsd_monit")
        )

    # Publishing

    def texts(self):
        """The EnvText of every env whose text can be used; the others are in ``errors`` and ``quarantined``."""
        found = []
        self.owners = {publish.service_prefix(name): name for name in self.rows}
        for name, env in sorted(self.envs.items()):
            row = self.rows.get(name)
            if row is None:
                continue
            try:
                found.append(self._text(env, row))
            except publish.EnvError as err:
                self.errors[name] = str(err)
            except Exception as err:  # noqa: BLE001 - whatever one env's files hold, it is that env's trouble alone
                self.errors[name] = f"its files cannot be used: {type(err).__name__}: {err}"
        return found

    def _text(self, env, row):
        over = self.overlay.get(env.name)
        template = over["monitrc.tpl"] if over else env.files()[0]["monitrc.tpl"]
        if template is None:
            raise publish.EnvError("its monitrc.tpl cannot be read")
        facts = publish.facts_of(self.node, env.name, row, env["facts"])
        trusted = bool(over) or publish.trusted(self.node, env, self.trust)
        return publish.EnvText(
            self.node, env.name, template, facts, trusted, self.owners, self._rank(env, row)
        )

    def _rank(self, env, row):
        """Who keeps a service name that two envs claim: pillar's, then who has it already, then who runs."""
        has = env.name in self.had
        up = bool(self.kernel) and env.name in self.kernel.get(row["emulator"], ())
        return (env.name not in self.trust, not has, not up)

    def publish(self, dry=False):
        """
        Make monit include what the templates say; reload only if that changed.

        What goes wrong here is said in ``errors`` and keeps nothing from being judged and healed.
        """
        path = self.node.in_state("services.json")
        self.before = files.read_json(path, {})
        self.services = {n: tuple(v) for n, v in self.before.items()}
        self.had = {owner for owner, _ in self.services.values()}
        try:
            self._publish(dry, path)
        except (AgentError, OSError, subprocess.SubprocessError) as err:
            self.errors["(monit)"] = str(err)
            state.say(f"publish: {err}", loud=True)

    def _publish(self, dry, path):
        publisher = self.publisher
        texts = self.texts()
        old_bad = files.read_json(self.node.in_state("quarantine.json"), {})
        digests = {t.env: publish.digest(t.text) for t in texts}
        self.quarantined = {e: b for e, b in old_bad.items() if digests.get(e) == b.get("digest")}
        wanted = publish.digest(publisher.compose(texts))
        self.held = files.read_json(self.node.in_state("held.json"))
        if self.held and self.held["digest"] != wanted:  # its reason is gone
            self.held = None
            if not dry:
                files.remove(self.node.in_state("held.json"))
        if self.held:
            good = self._earlier(self.held["generation"])
            names, differs = publisher.changed(good)
        else:
            kept = self._kept()
            good = sorted(
                [t for t in texts if t.env not in self.quarantined] + kept, key=lambda t: t.env
            )
            names, differs = publisher.changed(good)
            if (
                differs
            ):  # then those in quarantine are tried again too: what they collided with may be gone
                good, bad = publisher.accept(
                    sorted(texts + kept, key=lambda t: t.env), self.quarantined
                )
                self.quarantined = {
                    e: {"reason": words, "digest": digests.get(e)} for e, words in bad.items()
                }
                names, differs = publisher.changed(good)
        if publisher.glob and len(good) > publish.INCLUDES:
            raise AgentError(
                f"{len(good)} envs are more than monit includes by one glob ({publish.INCLUDES}); nothing was changed: "
                "cbsd_monit:monit:include: publish has no such limit"
            )
        self.changed = sorted(name or "node" for name in names)
        self.services = {n: (t.env, c) for t in good for n, c in t.services().items()}
        self.monit.extra_timeout = len(self.services) / 1000
        self.foreign = {t.env: t.foreign for t in good if t.foreign}
        self.warnings = publisher.limits(good)
        if dry:
            return
        if self.quarantined != old_bad:
            files.write_json(self.node.in_state("quarantine.json"), self.quarantined)
        for text in good:
            self._env_file(text.env, text.text)
        for name in self.quarantined:
            self._env_file(
                name, None
            )  # nothing that monit refuses stays where a glob would find it
        services = {n: list(v) for n, v in self.services.items()}
        if services != self.before:
            files.write_json(path, services)
        if publisher.glob:
            head = self.node.in_state("head")
            if not os.path.exists(head) or open(head, encoding="utf-8").read() != publisher.head:
                files.write(head, publisher.head)
        if differs:
            publisher.swap(good)
        files.flush(late=False)
        self._load(wanted)

    def _earlier(self, number):
        """What generation ``number`` said of the envs that there still are; ``publisher`` gets its head."""
        self.publisher.head, parts = self.publisher.read(number)
        return [
            publish.Kept(n, part)
            for n, part in sorted(parts.items())
            if n in self.envs and n in self.rows
        ]

    def _env_file(self, name, text):
        """Write (or with None remove) the env's own ``monitrc``; what stands in the way there is that env's trouble alone."""
        env = self.envs.get(name)
        if env is None:
            return

        def failed(err):
            self.errors.setdefault(
                name, f"jails-system/{name}/monit/monitrc cannot be written: {err.strerror}"
            )

        try:
            if text is None:
                env.dir.remove("monitrc")
            elif env.dir.read("monitrc") != text:
                env.dir.write("monitrc", text, failed, durable=False)  # each pass compares it
        except OSError as err:
            failed(err)

    def _kept(self):
        """An env whose facts are missing for now keeps what was published for it before."""
        parts = publish.parts_of(self.publisher.current())
        ranks = {
            n: self._rank(self.envs[n], self.rows[n])
            for n in self.errors
            if n in self.envs and n in self.rows
        }
        return [
            publish.Kept(n, parts[n], ranks.get(n, (True, False, True)))
            for n in self.errors
            if n in parts
        ]

    def _load(self, wanted):
        """
        See to it that monit runs what is published, and that it checks again; a reload that ends it is taken back.

        ``wanted`` is the digest of what the inputs ask for: as long as they ask for the same, it is not tried again.
        """
        node, mark = self.node, self.node.in_state("loaded")
        now = publish.digest(self.publisher.current())
        loaded = files.read_json(mark, {})
        self.status = self.monit.status()
        if self.status is None:
            return
        self._miss()
        if loaded.get("digest") == now and not (self.missing and node.age(loaded) > 60):
            return
        before, began = self.status, time.time()
        self.reloaded, asked = True, self._reload()
        self.status, cycles = self._verified(before, began)
        self.verify_wait = round(time.monotonic() - asked, 3)
        if self.status is None and self.monit.pid() is not None:
            raise AgentError("monit runs and does not answer since its reload")
        if self.status is None:
            number = self.publisher.generation()
            self._hold(
                self.publisher.older(), wanted, f"monit ended when it read generation {number}"
            )
            self.monit.start()
            self.status = self.monit.wait(set(), 10)
            raise AgentError(
                f"{self.held['why']}; generation {self.held['generation'] or 'without envs'} is published again"
            )
        self._miss()
        if not cycles:
            self.errors.setdefault(
                "(monit)", f"monit has not checked anything for {VERIFY} s since its reload"
            )
        files.write_json(mark, {"digest": now, "verify_wait": self.verify_wait, **node.stamp()})

    def _reload(self):
        """Make monit read what is published; returns when it was asked. While it reads, so do we."""
        self.monit.reload(self.publisher.tested())
        asked = time.monotonic()
        for env in self._settled():
            with contextlib.suppress(Exception):  # whoever judges it will say so
                self.told[env.name] = policy.of(self.node, env)
        return asked

    def _reading(self):
        """The seconds in which monit has to read what is published: it compares each service with all (5.33: 4,000 in 1 s, 40,000 in 55 to 98 s)."""
        return VERIFY + self.monit.extra_timeout + 0.12 * self.monit.extra_timeout**2

    def _verified(self, before, began):
        """
        (Status, True) as soon as monit has read all of ``services`` and checked something since, (None, False) if it ended.

        (Status, False) if neither is so after VERIFY seconds and what many services take: a monit in the middle of a long cycle
        reads when that is over.
        """
        names = {name.lower() for name in self.services}
        until = time.monotonic() + self._reading()
        while True:
            status = self.monit.status(timeout=2)
            if status is None and self.monit.pid() is None:
                time.sleep(0.2)  # its pid file may just be written anew
                if self.monit.pid() is None and self.monit.status(timeout=2) is None:
                    return None, False
            elif status is not None and status.begun_since(before, began):
                if any(s.watched and s.monitor != 2 for s in status.services.values()):
                    if not names - {name.lower() for name in status.services}:
                        return status, True
            if time.monotonic() >= until:
                return status or self.monit.status(), False
            time.sleep(0.05)

    def _hold(self, number, wanted, why):
        """Publish generation ``number`` instead of what the inputs ask for, until they ask for something else."""
        self.held = {"digest": wanted, "generation": number, "why": why, **self.node.stamp()}
        files.write_json(self.node.in_state("held.json"), self.held)
        good = self._earlier(number)
        self.publisher.swap(good)
        self.services = {n: (t.env, c) for t in good for n, c in t.services().items()}
        for text in good:
            self._env_file(text.env, text.text)
        files.write_json(
            self.node.in_state("services.json"), {n: list(v) for n, v in self.services.items()}
        )
        files.flush(late=False)
        state.say(
            f"publish: {why}; generation {number} is published again until its inputs change",
            loud=True,
        )

    def _miss(self):
        """Which checks are published and unknown to monit: then nobody looks, and that must not read as health."""
        known = {name.lower() for name in self.status.services}
        self.missing = {c for n, (_, c) in self.services.items() if n.lower() not in known}
        if self.missing:
            self.errors["(monit)"] = (
                f"monit does not know {len(self.missing)} of the published checks: does {self.node.conf['monitrc']} include them?"
            )
        else:
            self.errors.pop("(monit)", None)

    def ensure_monit(self):
        """Something must watch the watcher: start monit where it does not answer."""
        if self.status is not None:
            return
        self.status = self.monit.status()
        if self.status is None:
            if self.monit.pid():
                asked = self._reload()  # it runs from before our socket was in its control file
            else:
                self.monit.start()
                asked = time.monotonic()
            self.status = (
                self.monit.wait(set(self.services), self._reading()) or self.monit.status()
            )
            self.verify_wait = round(time.monotonic() - asked, 3)
            if self.status is None:
                raise AgentError(f"monit does not answer on its socket {self.monit.socket}")
            self.started = True
            state.say(
                "monit did not answer; it was started or made to read its control file", loud=True
            )
            loaded = {
                "digest": publish.digest(self.publisher.current()),
                "verify_wait": self.verify_wait,
                **self.node.stamp(),
            }
            files.write_json(self.node.in_state("loaded"), loaded)

    # Judging

    def remember(self):
        """What the state needs to know that a pass just looked at the very same; gone with the boot, and after a pass with errors."""
        path = self.node.in_run("passed.json")
        if self.errors or self.status is None or self.missing:
            files.remove(path)
            return
        files.scratch(
            path + ".new",
            json.dumps(
                {
                    **self.node.stamp(),
                    "config": publish.digest(json.dumps(self.node.conf, sort_keys=True)),
                    "trust": publish.digest(json.dumps(self.trust, sort_keys=True)),
                    "published": publish.digest(self.publisher.current()),
                    "answer": {
                        "quarantined": {
                            env: why["reason"] for env, why in self.quarantined.items()
                        },
                        "foreign": self.foreign,
                        "warnings": self.warnings,
                        "held": self.held,
                    },
                }
            ),
        )
        os.replace(path + ".new", path)

    def running(self):
        """The envs that the kernel runs now."""
        alive = self.kernel or {}
        return [
            env for name, env in sorted(self.envs.items()) if name in alive.get(env["emulator"], ())
        ]

    def judge(self):
        """Give every env its state; those that want healing end up in ``due``."""
        by_env = {}
        for name, (env, check) in self.services.items():
            by_env.setdefault(env, {})[name] = check
        self.due = []
        for env in self._settled():
            name = env.name
            try:
                policy.judge(self, env, by_env.get(name, {}))
            except Exception as err:  # noqa: BLE001 - as above: all other envs are still judged
                env.go("unknown", f"its policy cannot be used: {type(err).__name__}: {err}")
            if env["intent"] == "running" and not self._linked(env):
                self.warnings.append(
                    f"{name}: CBSD cannot tell of its stops, its hooks are not linked: run the formula again"
                )
            self._marker(env)
            env.save()
        policy.restrain(self)
        try:
            self._judge_node()
            self._switch(by_env)
        except OSError as err:
            self.errors.setdefault("(monit)", str(err))

    def _judge_node(self):
        """The node's own checks (`node-CHECK`): told when they begin and cease to fail, nothing is healed."""
        if self.status is None:
            return
        path = self.node.in_state("node-checks.json")
        before = files.read_json(path, {})
        now = {}
        for name, service in self.status.services.items():
            if name.startswith("node-") and "." not in name and service.watched:
                now[name[5:]] = (
                    service.message or f"monit says {service.status}" if service.failing else ""
                )
        for check, reason in now.items():
            if bool(reason) != bool(before.get(check)):
                transition = "failing" if reason else "healthy"
                state.say(f"node: {transition} ({check}) {reason}", loud=bool(reason))
                spool.append(
                    self.node, spool.event(self.node, transition, reason=reason, check=check)
                )
        if now != before:
            files.write_json(path, now)

    def _marker(self, env):
        """``dead/ENV`` exists while it should run and is known not to: then its checks are skipped, not timed out."""
        path = self.node.dead_marker(env.name)
        row = self.rows[env.name]
        dead = (
            self.kernel is not None
            and env["intent"] == "running"
            and env.name not in self.kernel.get(row["emulator"], ())
            and env["phase"] is None
        )
        if dead != os.path.exists(path):
            if dead:
                with open(path, "w", encoding="ascii"):
                    pass
            else:
                files.remove(path)

    def _switch(self, by_env):
        """Switch monitoring on for envs that should be up, off for the others; children by name, after their parent."""
        if self.status is None:
            return
        asked = {"monitor": [], "unmonitor": []}
        for name, services in by_env.items():
            env = self.envs.get(name)
            if env is None:
                continue
            wanted = env["intent"] == "running" and env["state"] not in (
                "gave_up",
                "maintenance",
                "slave",
            )
            for service in sorted(services, key=lambda s: services[s] != "env"):
                seen = self.status.services.get(service)
                if seen is None or seen.pending or bool(seen.monitor) == wanted:
                    continue
                asked["monitor" if wanted else "unmonitor"].append(service)
        for action, some in asked.items():
            self.monit.act(some, action)
        self.unsettled = any(asked.values())
        if self.unsettled:
            self.monit.hurry(self.status.version)


def run(node, overlay=None, start_monit=False):
    """One whole pass under the pass lock; returns it."""
    with node.pass_lock(), files.batch() as written:
        seen = Pass(node, overlay)
        seen.look()
        seen.publish()
        if start_monit:
            try:
                seen.ensure_monit()
            except (AgentError, OSError, subprocess.SubprocessError) as err:
                seen.errors["(monit)"] = "; ".join(
                    filter(None, [seen.errors.get("(monit)"), str(err)])
                )
                state.say(f"monit: {err}", loud=True)
        seen.judge()
        try:
            written.flush()
        except OSError as err:
            seen.errors.setdefault("(disk)", str(err))
            state.say(f"records: {err}", loud=True)
        seen.remember()
        for folder in (node.state, node.in_state("envs"), node.in_state("generations")):
            files.tidy(folder)
        return seen


def rollback(node, number=None):
    """
    Publish generation ``number`` (default: the one before the present) and keep to it until what pillar, hooks or operators ask for
    changes, or ``undo`` is called; returns the pass. Raises AgentError if there is no such generation.
    """
    with node.pass_lock():
        seen = Pass(node)
        seen.look(dry=True)
        publisher = seen.publisher
        seen.before, seen.had = {}, set()
        wanted = publish.digest(publisher.compose(seen.texts()))
        target = publisher.older() if number is None else number
        if target not in publisher.numbers():
            there = ", ".join(map(str, publisher.numbers())) or "none"
            raise AgentError(
                f"no generation {'before the present one' if target is None else target}; there are: {there}"
            )
        held = {
            "digest": wanted,
            "generation": target,
            "why": "rolled back by an operator",
            **node.stamp(),
        }
        files.write_json(node.in_state("held.json"), held)
    return run(node)


def undo_rollback(node):
    """Publish what the inputs ask for again; returns the pass."""
    with node.pass_lock():
        files.remove(node.in_state("held.json"))
    return run(node)


def dry(node, overlay):
    """What a pass would change, without changing anything."""
    seen = Pass(node, overlay)
    seen.look(dry=True)
    seen.publish(dry=True)
    return seen


def look(node):
    """
    The cheap pass that monit runs each cycle: kernel against intent; returns True if the agent should be woken.

    It takes no lock and asks neither CBSD nor monit; one process, `jls`.
    """
    alive = cbsd.kernel(node)
    wake = os.path.exists(node.in_run("trigger"))
    for name in os.listdir(node.in_state("envs")):
        if not name.endswith(".json"):
            continue
        env = state.Env(node, name[:-5])
        if env["boot"] != node.boot:
            wake = True  # whether CBSD starts it at boot is for the pass to find out
            continue
        if env["op"]:
            wake = True  # if its agent lives, waking costs nothing; if not, somebody has to finish
        if env["intent"] is None or env["op"] or env["phase"]:
            continue
        up = env.name in alive.get(env["emulator"], ())
        heeded = env["state"] not in ("silenced", "maintenance", "slave")
        marker = node.dead_marker(env.name)
        if env["intent"] == "running" and not up:
            if not os.path.exists(marker):
                with open(marker, "w", encoding="ascii"):
                    pass
            wake = wake or heeded and not (env["gave_up"] or policy.waits(env))
        elif os.path.exists(marker) or heeded and env["intent"] == "stopped" and up:
            wake = True
    with open(node.in_run("look"), "w", encoding="ascii") as handle:
        handle.write(f"{time.time():.0f}\n")
    return wake
