"""Publish what the templates ask for, without what monit refuses, and have monit read it."""

import functools
import os
from collections import namedtuple

import bugs
import files
import generations
import reload
import text as text_
import trial
from generations import Content
from node import AgentError
from records import say
from reload import Publication
from text import EnvError, digest

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
    return reload.last(_steps(job, publication, dry), publication)


_Job = namedtuple("_Job", "node monit survey envs overlay meanwhile")


def _steps(job, publication, dry):
    """Yield the Publication after each step."""
    node = job.node
    published = {owner for owner, _ in publication.services.values()}
    texts = _make(node, job.survey, job.envs, job.overlay, published, publication.errors)
    wanted = digest(generations.compose(node, Content(node.head, texts)))
    refused_before = files.read_json(node.in_state("quarantine.json"), {})
    digests = {text.env: digest(text.text) for text in texts}
    still = {e: b for e, b in refused_before.items() if digests.get(e) == b.get("digest")}
    held = files.read_json(node.in_state("held.json"))
    if held and held["digest"] != wanted:  # its reason is gone
        held = None
        if not dry:
            files.remove(node.in_state("held.json"))
    publication = publication._replace(quarantined=still, held=held)
    yield publication
    if held:
        content = _earlier(job, held["generation"])
    else:
        kept = _kept(job, publication)
        good = sorted([t for t in texts if t.env not in still] + kept, key=lambda t: t.env)
        content = Content(node.head, good)
        if generations.compose(node, content) != generations.published(node):
            # Those in quarantine are tried again too: what they collided with may be gone.
            every = sorted(texts + kept, key=lambda t: t.env)
            verdict = trial.Trial(node, job.monit, node.head).accept(every, still)
            content = Content(node.head, verdict.good)
            refused = verdict.refused.items()
            refused = {env: {"reason": w, "digest": digests.get(env)} for env, w in refused}
            publication = publication._replace(quarantined=refused, accepted=verdict.accepted)
            yield publication
    if reload.globs(node) and len(content.texts) > INCLUDES:
        raise AgentError(
            f"{len(content.texts)} envs are more than monit includes by one glob ({INCLUDES}); "
            "nothing was changed: cbsd_monit:monit:include: publish has no such limit"
        )
    text, live = generations.compose(node, content), generations.published(node)
    changed = [] if text == live else generations.difference(text, live)
    services_before = publication.services
    publication = publication._replace(
        changed=sorted(name or "node" for name in changed),
        services=_services(content),
        foreign={t.env: t.foreign for t in content.texts if t.foreign},
        warnings=text_.limits(content.head, content.texts, node.poll),
    )
    job.monit.extra_timeout = len(publication.services) / 1000
    yield publication
    if dry:
        return
    _write(job, publication, content, refused_before, services_before)
    if text != live:
        generations.swap(node, text)
    files.flush(late=False)
    hold = functools.partial(_hold, job, wanted)
    yield from reload.load(node, job.monit, publication, job.meanwhile, hold)


def _services(content):
    return {n: (text.env, check) for text in content.texts for n, check in text.services().items()}


def wanted(node, survey):
    """Digest of what templates and facts ask for, whatever is published."""
    texts = _make(node, survey, survey.envs, {}, set(), {})
    return digest(generations.compose(node, Content(node.head, texts)))


def _make(node, survey, envs, overlay, published, errors):
    """
    The EnvText of each env whose text can be used; ``errors`` gets the others.

    published
        Names of the envs that are published now.
    """
    owners = {text_.service_prefix(name): name for name in survey.rows}
    found = []
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
            errors[name] = str(err)
        except Exception as err:  # noqa: BLE001 - one env's trouble never ends the pass
            errors[name] = bugs.report(node, f"making the rules of {name}", err)
    return found


def _rank(survey, env, published):
    """Who keeps a service name that two envs claim: pillar's, who has it already, who runs."""
    return (env.name not in survey.trust, env.name not in published, not survey.up(env))


def _kept(job, publication):
    """What was published for the envs whose text cannot be made now."""
    parts = generations.parts_of(generations.published(job.node))
    published = {owner for owner, _ in publication.services.values()}
    found = []
    for name in publication.errors:
        if name in parts:
            known = name in job.envs and name in job.survey.rows
            rank = _rank(job.survey, job.envs[name], published) if known else (True, False, True)
            found.append(text_.kept(name, parts[name], rank))
    return found


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
    for name in publication.quarantined:
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


def _hold(job, wanted, publication, why):
    """Publish an older generation, and keep to it until the inputs ask for something else."""
    node, number = job.node, generations.older(job.node)
    held = {"digest": wanted, "generation": number, "why": why, **node.stamp()}
    files.write_json(node.in_state("held.json"), held)
    content = _earlier(job, number)
    generations.swap(node, generations.compose(node, content))
    publication = publication._replace(held=held, services=_services(content))
    for text in content.texts:
        _write_env(job, text.env, text.text, publication.errors)
    _write_services(node, publication.services)
    files.flush(late=False)
    again = f"generation {number} is published again until its inputs change"
    say(f"publish: {why}; {again}", loud=True)
    return publication
