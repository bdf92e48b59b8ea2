"""Which envs' texts monit accepts together, and how few trials find those that it refuses."""

import generations
import monit
import pytest
import text
from node import AgentError
from trial import Trial

from .conftest import GOOD, Daemon, cases, claim, facts, one


class Counting(monit.Monit):
    trials = 0

    def test(self, path):
        self.trials += 1
        return super().test(path)


def texts(node, count, bad=()):
    return [one(node, f"e{i}", "if exist then bad" if i in bad else GOOD) for i in range(count)]


@pytest.mark.parametrize("bad", [(), (0,), (99,), (50,), (3, 4), (0, 50, 99)])
def test_the_envs_that_do_not_parse_are_found_without_parsing_each(node, bad):
    fake = Daemon(node)
    good, refused, _ = Trial(node, fake, node.head).accept(texts(node, 100, bad))
    assert sorted(refused) == sorted(f"e{i}" for i in bad)
    assert len(good) == 100 - len(bad)
    assert fake.trials <= (2 if len(bad) == 1 else 2 + 12 * len(bad))


def claiming(node, env, *names, rank=()):
    rules = "".join(map(claim, names))
    return text.make(node, env, rules, facts(node, env), True, rank=rank)


@cases(
    ("claims", "good", "refused"),
    ({"a": ["Web"], "b": ["web"]}, ["a"], {"b": "refused: service name already used by a"}),
    (
        {"a": ["x", "X"], "b": ["y"]},
        ["b"],
        {"a": "refused: two of its services have the same name"},
    ),
)
def test_duplicate_service_names_are_found_before_monit_sees_them(node, claims, good, refused):
    found = [claiming(node, env, *names) for env, names in claims.items()]
    verdict = Trial(node, Daemon(node), node.head).accept(found)
    assert ([t.env for t in verdict.good], verdict.refused) == (good, refused)


def test_name_that_two_envs_claim_stays_with_pillars_then_with_who_has_it(node):
    ranks = {"a": (True, True, False), "m": (True, False, True), "z": (False, True, True)}
    pair = [claiming(node, env, "w-web", rank=rank) for env, rank in ranks.items()]
    for left in (pair, pair[:2]):
        good, refused, _ = Trial(node, Daemon(node), node.head).accept(left)
        assert [t.env for t in good] == [left[-1].env]
        assert refused["a"] == f"refused: service name already used by {left[-1].env}"


def test_what_monit_accepted_is_told_with_the_control_file_it_stood_in(node, tmp_path):
    pair = [one(node, "a", GOOD), one(node, "b", CULPRITS["syntax"])]
    verdict = Trial(node, monit.Monit(node), node.head).accept(pair)
    alone = generations.compose(node, generations.Content(node.head, pair[:1]))
    assert verdict.accepted == ((tmp_path / "monitrc").read_text(), alone), "without the culprit"
    fake = Daemon(node)
    fake.bad = "check"
    verdict = Trial(node, fake, node.head).accept(pair[1:])
    assert "check" not in verdict.accepted[1]


# What monit says of it has a line, the next env's line, no line at all, or warnings before it.
CULPRITS = {
    "syntax": "if exits then alert",
    "unfinished": "if exist then",
    "missing program": 'if exist then alert\ncheck program "%%ENV%%.p" with path "/nope/x"\n'
    "  if status != 0 then alert",
    "unknown parent": 'if exist then alert\n  depends on "nobody"',
    "loop": 'if exist then alert\n  depends on "%%ENV%%.a"',
    "unknown user": 'if exist then exec "/bin/true" as uid nosuchuser',
}


@pytest.mark.parametrize("at", [0, 7, 15])
@pytest.mark.parametrize("kind", CULPRITS)
def test_real_monit_s_culprit_is_named_whatever_it_says(node, wake, kind, at):
    assert node.wake == str(wake), "monit warns of each program that is not there"
    found = [one(node, f"e{i:02d}", CULPRITS[kind] if i == at else GOOD) for i in range(16)]
    trial = Trial(node, Counting(node), node.head)
    good, refused, _ = trial.accept(found)
    assert list(refused) == [f"e{at:02d}"] and len(good) == 15
    assert trial.monit.trials <= 9, trial.monit.trials
    assert "conf.json" not in refused[f"e{at:02d}"] and ".stage" not in refused[f"e{at:02d}"]


@pytest.mark.parametrize(
    "bad", [{2: "syntax", 3: "unfinished"}, {0: "loop", 9: "unknown parent", 15: "missing program"}]
)
def test_several_culprits_of_several_kinds(node, bad):
    found = [one(node, f"e{i:02d}", CULPRITS[bad[i]] if i in bad else GOOD) for i in range(16)]
    good, refused, _ = Trial(node, Counting(node), node.head).accept(found)
    assert sorted(refused) == [f"e{i:02d}" for i in sorted(bad)] and len(good) == 16 - len(bad)


def test_template_that_all_share_and_monit_refuses(node):
    found = [one(node, f"e{i:02d}", GOOD if i == 20 else CULPRITS["syntax"]) for i in range(40)]
    trial = Trial(node, Counting(node), node.head)
    good, refused, _ = trial.accept(found)
    assert [t.env for t in good] == ["e20"] and len(refused) == 39
    assert trial.monit.trials <= 40 + 8 * 8


def test_env_that_was_refused_before_costs_one_trial_and_comes_back(node):
    fake = Daemon(node)
    trial = Trial(node, fake, node.head)
    good, refused, _ = trial.accept(texts(node, 100, (50,)), {"e50"})
    assert list(refused) == ["e50"] and len(good) == 99 and fake.trials == 2
    good, refused, _ = trial.accept(texts(node, 100), {"e50"})
    assert not refused and len(good) == 100


def test_operators_own_broken_control_file_is_nobody_s_fault(node, conf):
    with open(conf["monitrc"], "a") as handle:
        handle.write("set daemn 1\n")
    with pytest.raises(AgentError, match="the node's own control file.*daemn"):
        Trial(node, Counting(node), node.head).accept([one(node, "a", GOOD)])
