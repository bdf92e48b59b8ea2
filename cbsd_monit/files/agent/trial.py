"""Which envs' texts monit accepts together; those it refuses are found by trials of `monit -t`."""

import bisect
import os
import re
from collections import namedtuple

import files
import generations
from node import AgentError

ONE_BY_ONE = 8  # bisect for up to 8 bad envs; beyond that test each one alone
_BLAMED = re.compile(r"published:(\d+)")
_QUOTED = re.compile(r"'([^']+)'")
_INCLUDE = re.compile(r"\s*include\s+\S*(/published|/head|/jails-system/\*/monit/monitrc)\"?\s*$")

# ``accepted``: the (control file, text) that monit accepted last, None if it refused all.
Verdict = namedtuple("Verdict", "good refused accepted")


class Trial:
    """Asks ``monit`` about texts of this node, together with the operator's control file."""

    def __init__(self, node, monit, head):
        self.node, self.monit, self.head = node, monit, head
        self.accepted = None

    def accept(self, texts, before=(), kept=()):
        """
        Split EnvTexts into those that monit accepts together and those that it refuses.

        before
            Names of envs that were refused the last time: asked about after the others, so that
            they cost one trial.
        kept
            {env: EnvText} that monit once took: it stands where the new one is refused.

        Returns a Verdict, ``refused`` as {env: whose refusal it is, and why}. Raises AgentError
        when monit does not accept the node's own control file.
        """
        good, refused = self._split(texts, before, kept)
        there = {text.env for text in good}
        more = [kept[env] for env in sorted(refused) if env in kept and env not in there]
        if more:
            good, _ = self._split([*good, *more], {text.env for text in more}, {})
        return Verdict(good, refused, self.accepted)

    def _split(self, texts, before, kept):
        refused, taken, fresh = {}, {}, []
        for text in sorted(texts, key=lambda t: (t.rank, t.env)):
            names = [name.lower() for name in text.names]
            twin = next((taken[name] for name in names if name in taken), None)
            if twin:
                refused[text.env] = f"refused: service name already used by {twin}"
            elif len(set(names)) < len(names):
                refused[text.env] = "refused: two of its services have the same name"
            else:
                taken.update(dict.fromkeys(names, text.env))
                fresh.append(text)
        fresh.sort(key=lambda t: t.env)
        good = self._sound([t for t in fresh if t.env not in before], refused)
        again = [t for t in fresh if t.env in before]
        if again:
            both = sorted(good + again, key=lambda t: t.env)
            words = self._words(both)
            if not words:
                good = both
            elif len(again) == 1:
                refused[again[0].env] = self._reason(words, both, again[0])
            else:
                good = self._sound(both, refused, words)
        return good, refused

    def _control(self, stage, control):
        """The operator's ``control`` file, including ``stage`` instead of what is published."""
        kept = [line for line in control.splitlines() if not _INCLUDE.match(line)]
        if not re.search(r"^\s*set\s+daemon", control, re.M):
            kept.append("set daemon 30")
        return "\n".join([*kept, f"include {stage}", ""])

    def _compose(self, texts):
        return generations.compose(self.node, generations.Content(self.head, texts))

    def _words(self, texts):
        """What monit says of these texts with the operator's own control file; '' if good."""
        folder = self.node.in_state("generations")
        stage, trial = os.path.join(folder, ".stage"), os.path.join(folder, ".monitrc")
        control, text = files.read_text(self.node.conf["monitrc"]) or "", self._compose(texts)
        if self.accepted == (control, text):
            return ""
        try:
            files.scratch(stage, text)
            files.scratch(trial, self._control(stage, control))
            words = self.monit.test(trial)
        finally:
            files.remove(trial)
            files.remove(stage)
        if not words:
            self.accepted = control, text
        return words.replace(stage, "published").replace(trial, self.node.conf["monitrc"])

    def _blamed(self, words, texts):
        """Indexes of the texts that monit's words point at, the likeliest first."""
        found, starts, lines = [], [], 0
        for text in texts:
            starts.append(lines)
            lines += text.text.count("\n")
        before = self._compose([]).count("\n")
        for number in reversed(_BLAMED.findall(words)):
            at = bisect.bisect_right(starts, int(number) - before - 1) - 1
            found += [at, at - 1]  # a statement that is not finished is noticed in the next env
        for name in _QUOTED.findall(words):  # `Depending service 'x' is not defined` has no line
            found += [at for at, text in enumerate(texts) if name in text.text][:2]
        return [at for at in dict.fromkeys(found) if 0 <= at < len(texts)]

    def _cured(self, words, texts):
        """
        Index of the one env whose removal makes the rest valid, or None.

        Only those that monit's message points at are tried.
        """
        for at in self._blamed(words, texts)[:3]:
            if not self._words(texts[:at] + texts[at + 1 :]):
                return at
        return None

    def _culprit(self, words, texts):
        """
        Index of the first env that monit refuses: the shortest refused beginning ends with it.

        Found by bisection, from where monit's message points at.
        """
        good, bad = 0, len(texts)
        for at in self._blamed(words, texts)[:1]:
            for edge in (at, at + 1, at - 1):
                if good < edge < bad:
                    good, bad = (good, edge) if self._words(texts[:edge]) else (edge, bad)
        while bad - good > 1:
            half = (good + bad) // 2
            good, bad = (good, half) if self._words(texts[:half]) else (half, bad)
        return bad - 1

    def _reason(self, words, texts, culprit):
        """Monit's verdict on ``culprit``, one of ``texts``, by the lines of the env's own file."""
        at = texts.index(culprit)
        above = self._compose(texts[:at]).count("\n") + 1  # its first line says whose it is
        last = culprit.text.rstrip().count("\n")

        def own(match):
            # A statement that is not finished is noticed in the next env.
            return f"monitrc.tpl:{min(max(int(match.group(1)) - above, 1), last)}"

        return "monit says: " + _BLAMED.sub(own, _verdict(words))

    def _sound(self, texts, refused, words=None):
        """Those of ``texts`` that monit accepts together; the others go to ``refused``."""
        words = self._words(texts) if words is None else words
        if not words:
            return texts
        at = self._cured(words, texts)
        if at is not None:
            refused[texts[at].env] = self._reason(words, texts, texts[at])
            return texts[:at] + texts[at + 1 :]
        alone = self._words([])
        if alone:
            words = _verdict(alone)
            raise AgentError(f"monit does not accept the node's own control file: {words}")
        for count in range(len(texts)):
            if not words:
                break
            if count == ONE_BY_ONE:  # a template that many share is wrong
                answers = [(text, self._words([text])) for text in texts]
                bad = {t.env: self._reason(why, [t], t) for t, why in answers if why}
                refused.update(bad)
                texts = [text for text in texts if text.env not in bad]
            else:
                at = self._culprit(words, texts)
                until = texts[: at + 1]
                refused[texts[at].env] = self._reason(self._words(until), until, texts[at])
                texts = texts[:at] + texts[at + 1 :]
            words = self._words(texts)
        return texts


def _verdict(words):
    """Monit's verdict: the last line that names a place and what follows; warnings come before."""
    lines = words.splitlines() or [words]
    places = (n for n, line in enumerate(lines) if _BLAMED.search(line))
    return "; ".join(line.strip() for line in lines[max(places, default=len(lines) - 1) :])
