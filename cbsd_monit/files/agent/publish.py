"""Publish what the templates ask for, without what monit refuses, and have monit read it."""

import functools
import os
import re
from collections import namedtuple

import bugs
import files
import generations
import language
import reload
import text as text_
import trial
from generations import Content
from node import AgentError
from records import say
from reload import Publication
from text import EnvError, digest

NOT_YET = "its present text was not published"
_ADDRESS = re.compile(r"\baddress\s+[\"']?([0-9A-Fa-f.:]+)")
INCLUDES = 1024  # files that monit takes by one `include`, whatever the version


def publish(node, monit, survey, envs, overlay=None, dry=False, meanwhile=lambda: None):
    """
    Make monit include what the templates say; reload it only if that changed.

    envs
        {name: Record} after the hooks were taken in.
    dry
        Only tell what would change.
    meanwhile
        Called while monit reads.

    Returns a Publication. What fails is in its ``errors`` and keeps no env from being healed.
    """
    before = files.read_json(node.in_state("services.json"), {})
    services = {service: tuple(owner) for service, owner in before.items()}
    publication = Publication(services, errors=dict(survey.errors))
    job = _Job(node, monit, survey, envs, overlay or {}, meanwhile)
    publication = reload.last(_steps(job, publication, dry), publication)
    if not (publication.asked or dry):  # it failed before; what monit knows counts all the same
        publication = publication._replace(status=monit.status(), asked=True)
    words = publication.errors.get("(monit)")
    for why in publication.quarantined.values() if words else ():
        why["reason"] = why["reason"].replace(NOT_YET, f"{NOT_YET}: {words}")
    return publication


_Job = namedtuple("_Job", "node monit survey envs overlay meanwhile")


def _steps(job, publication, dry):
    """Yield the Publication after each step."""
    node = job.node
    published = {owner for owner, _ in publication.services.values()}
    texts, unusable = _make(node, job.survey, job.envs, job.overlay, published)
    wanted = digest(generations.compose(node, Content(node.head, texts)))
    refused_before = files.read_json(node.in_state("quarantine.json"), {})
    digests = {text.env: digest(text.text) for text in texts}
    before = generations.published(node)
    live = generations.parts_of(before)
    control = digest(files.read_text(node.conf["monitrc"]) or "")
    still = {
        name: refusal
        for name, refusal in refused_before.items()
        if refusal["digest"] and digests.get(name) == refusal["digest"]
        if refusal.get("control") == control  # which may have been what monit did not take
    }
    held = files.read_json(node.in_state("held.json"))
    if held and held["digest"] != wanted:  # its reason is gone
        held = None
        if not dry:
            files.remove(node.in_state("held.json"))
    not_yet = {t.env: _refusal(NOT_YET) for t in texts if live.get(t.env) != t.text}
    publication = publication._replace(quarantined={**not_yet, **still, **unusable}, held=held)
    yield publication
    if held:
        content = _earlier(job, held["generation"])
        publication = publication._replace(quarantined={**still, **unusable})
        publication = _rolled_back(publication, texts, content)
    else:
        lost = {*publication.errors, *unusable}  # these have no text of their own now
        kept = _kept(job, live, {*lost, *still}, published)
        good = [t for t in texts if t.env not in still] + list(kept.values())
        content = Content(node.head, sorted(good, key=lambda t: t.env))
        if generations.compose(node, content) != before:
            kept = _kept(job, generations.latest_parts(node), {*lost, *not_yet}, published)
            # Those in quarantine are tried again too: what they collided with may be gone.
            every = [*texts, *(text for name, text in kept.items() if name in lost)]
            instead = {name: text for name, text in kept.items() if name not in lost}
            verdict = trial.Trial(node, job.monit, node.head).accept(every, still, instead)
            content = Content(node.head, verdict.good)
            refused = {
                name: _refusal(words, digests[name], control)
                for name, words in verdict.refused.items()
                if name in digests
            }
            quarantined, accepted = {**refused, **unusable}, verdict.accepted
            publication = publication._replace(quarantined=quarantined, accepted=accepted)
            yield publication
    if reload.globs(node) and len(content.texts) > INCLUDES:
        raise AgentError(
            f"{len(content.texts)} envs are more than monit includes by one glob ({INCLUDES}); "
            "nothing was changed: cbsd_monit:monit:include: publish has no such limit"
        )
    text = generations.compose(node, content)
    changed = [] if text == before else generations.difference(text, before)
    services_before = publication.services
    worst, warnings = text_.limits(content.head, content.texts, node.poll)
    publication = publication._replace(
        changed=sorted(name or "node" for name in changed),
        renewed=_renewed(content, live, set(changed)),
        services=_services(content),
        own=_own(content),
        foreign={t.env: t.foreign for t in content.texts if t.foreign},
        worst=worst,
        warnings=warnings,
        moved=_moved(job, content, publication.quarantined),
    )
    job.monit.extra_timeout = len(publication.services) / 1000
    yield publication
    if dry:
        return
    _write(job, publication, content, refused_before, services_before)
    if text != before:
        generations.swap(node, text)
    files.flush(late=False)
    if reload.globs(node):  # what cannot be written there is not what monit reads
        for name in publication.errors.keys() & {text.env for text in content.texts}:
            publication.quarantined[name] = _refusal(f"refused: {publication.errors[name]}")
    hold = functools.partial(_hold, job, wanted, texts)
    yield from reload.load(node, job.monit, publication, job.meanwhile, hold)


def _refusal(reason, digest=None, control=None):
    """What quarantine.json says; digests: of the text that monit refused, of its control file."""
    return {"reason": reason, "digest": digest, "control": control}


def _rolled_back(publication, texts, content):
    """The Publication, with those in quarantine whose wanted text is not that of ``content``."""
    why, number = publication.held["why"], publication.held["generation"] or "none"
    by_hand = why.startswith("rolled back")
    words = (
        f"{why} to generation {number}" if by_hand else f"rolled back to generation {number}: {why}"
    )
    live = {text.env: text.text for text in content.texts}
    not_live = {t.env: _refusal(words) for t in texts if live.get(t.env) != t.text}
    return publication._replace(quarantined={**not_live, **publication.quarantined})


def _own(content):
    """The services that are the node's own checks."""
    return [name for name in language.service_names(content.head) if name.startswith("node-")]


def _services(content):
    return {n: (text.env, check) for text in content.texts for n, check in text.services().items()}


def wanted(node, survey):
    """Digest of what templates and facts ask for, whatever is published."""
    texts, _ = _make(node, survey, survey.envs, {}, set())
    return digest(generations.compose(node, Content(node.head, texts)))


def _make(node, survey, envs, overlay, published):
    """
    ([EnvText] of the envs whose text can be used, {env: _refusal} of the others).

    published
        Names of the envs that are published now.
    """
    owners = {text_.service_prefix(name): name for name in survey.rows}
    found, unusable = [], {}
    for name, env in sorted(envs.items()):
        row, over = survey.rows.get(name), overlay.get(name)
        if row is None:
            continue
        try:
            template = over["monitrc.tpl"] if over else survey.found[name].template
            if template is None:
                raise EnvError("its monitrc.tpl cannot be read")
            facts = text_.facts_of(node, name, row, env["facts"])
            trusted = bool(over) or text_.trusted(survey.found[name], survey.trust.get(name))
            rank = _rank(survey, env, published)
            found.append(text_.make(node, name, template, facts, trusted, owners, rank))
        except EnvError as err:
            words = str(err) if str(err).startswith("no address") else f"refused: {err}"
            unusable[name] = _refusal(words)
        except Exception as err:  # noqa: BLE001 - one env's trouble never ends the pass
            unusable[name] = _refusal(bugs.report(node, f"making the rules of {name}", err))
    return found, unusable


def _rank(survey, env, published):
    """Who keeps a service name that two envs claim: pillar's, who has it already, who runs."""
    return (env.name not in survey.trust, env.name not in published, not survey.up(env))


def _kept(job, parts, names, published):
    """{env: EnvText} of the ``parts`` that monit took once, where ``names`` has the env."""
    found = {}
    for name in sorted(names & parts.keys()):
        known = name in job.envs and name in job.survey.rows
        rank = _rank(job.survey, job.envs[name], published) if known else (True, False, True)
        found[name] = text_.kept(name, parts[name], rank)
    return found


def _moved(job, content, quarantined):
    """The envs in quarantine whose live text asks at another address than they have now."""
    found = set()
    for text in content.texts:
        row = job.survey.rows.get(text.env)
        asked = _ADDRESS.findall(text.text) if text.env in quarantined and row else []
        if asked:
            facts = text_.facts_of(job.node, text.env, row, job.envs[text.env]["facts"])
            if facts["ADDRESS"] not in asked:
                found.add(text.env)
    return found


def _renewed(content, live, changed):
    """The services of ``content`` for which monit is given other words than it has in ``live``."""
    found = set()
    for text in content.texts:
        if text.env in changed:
            before = _blocks(live[text.env]) if text.env in live else {}
            now = _blocks(text.text) if before else dict.fromkeys(text.names)
            found |= {name for name, words in now.items() if not words or words != before.get(name)}
    return found


def _blocks(text):
    """{service: its part of ``text``}."""
    parts = re.split(r"(?mi)^(?=[ \t]*check\s)", text)[1:]
    return {name: part for part in parts for name in language.service_names(part)[:1]}


def _earlier(job, number):
    """The Content of a generation, less the envs that are gone."""
    head, parts = generations.read(job.node, number)
    there = [name for name in sorted(parts) if name in job.envs and name in job.survey.rows]
    return Content(head, [text_.kept(name, parts[name]) for name in there])


def _write(job, publication, content, refused_before, services_before):
    node = job.node
    if publication.quarantined != refused_before:
        files.write_json(node.in_state("quarantine.json"), publication.quarantined)
    for text in content.texts:
        _write_env(job, text.env, text.text, publication.errors)
    for name in publication.quarantined.keys() - {text.env for text in content.texts}:
        # Nothing that monit refuses stays where a glob would find it.
        _write_env(job, name, None, publication.errors)
    if publication.services != services_before:
        _write_services(node, publication.services)
    if reload.globs(node):
        head = node.in_state("head")
        if not os.path.exists(head) or open(head, encoding="utf-8").read() != content.head:
            files.write(head, content.head)


def _write_services(node, services):
    files.write_json(node.in_state("services.json"), {n: list(v) for n, v in services.items()})


def _write_env(job, name, text, errors):
    """Write the env's own `monitrc`, or remove it; a failure is that env's trouble alone."""
    if name not in job.envs:
        return
    folder = files.EnvDir(job.node.sysdir(name))

    def failed(err):
        where = f"jails-system/{name}/monit/monitrc"
        errors.setdefault(name, f"{where} cannot be written: {err.strerror}")

    try:
        if text is None:
            folder.remove("monitrc")
        elif folder.read("monitrc") != text:
            folder.write("monitrc", text, failed, durable=False)  # each pass compares it
    except OSError as err:
        failed(err)


def _hold(job, wanted, texts, publication, why):
    """Publish an older generation, and keep to it until the inputs ask for something else."""
    node, number = job.node, generations.older(job.node)
    held = {"digest": wanted, "generation": number, "why": why, **node.stamp()}
    files.write_json(node.in_state("held.json"), held)
    content = _earlier(job, number)
    generations.swap(node, generations.compose(node, content))
    publication = publication._replace(held=held, services=_services(content), renewed=())
    publication = _rolled_back(publication, texts, content)
    files.write_json(node.in_state("quarantine.json"), publication.quarantined)
    for text in content.texts:
        _write_env(job, text.env, text.text, publication.errors)
    _write_services(node, publication.services)
    files.flush(late=False)
    again = f"generation {number} is published again until its inputs change"
    say(f"publish: {why}; {again}", loud=True)
    return publication
