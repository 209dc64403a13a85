"""Oracles: one contract over all, and what is particular to each."""

import importlib.util
import json

import keras_tuner
import pytest
from keras_tuner import oracles as kt

from cnn_search import samplers
from cnn_search.definition import OracleTable
from cnn_search.errors import DefinitionError, LedgerError
from cnn_search.oracles import Ask, Oracle
from cnn_search.spaces import complete, narrow, outside
from cnn_search.training import Protocol
from search_spaces.digits import Space

GP = pytest.param(
    "gp",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("torch") is None, reason="the oracle gp needs torch"
    ),
)
KINDS = ["random", "grid", "bayesian", "hyperband", "tpe", GP]
OVER = ["filters_1", "dense_units"]


def whole_space():
    return Space((8, 8, 1), 10, 100, Protocol(epochs=4)).hyperparameters()


def small_space():
    """Four hyperparameters vary, one of them under a condition."""
    fixed = {
        hp.name: hp.default
        for hp in whole_space().space
        if hp.name not in ("filters_1", "dense_units", "optimiser", "momentum", "learning_rate")
    }
    return narrow(whole_space(), fixed)


def make(kind: str, seed: int = 3, space=None) -> Oracle:
    over = OVER if kind == "grid" else []
    space = space or (narrow(whole_space(), {}, over) if kind == "grid" else small_space())
    return Oracle(
        OracleTable(kind=kind, over=over),
        space,
        objective="val_accuracy",
        epochs=4,
        trials=12,
        seed=seed,
    )


def score(ask: Ask) -> float:
    """A made-up score that depends on the values alone."""
    return ask.values["filters_1"] / 200 + ask.values["dense_units"] / 1000


def run(oracle: Oracle, trials: int) -> list[Ask]:
    """Ask and tell in turn, each third trial failing; until nothing is left."""
    asks: list[Ask] = []
    for number in range(trials):
        ask = oracle.ask(number)
        if ask is None:
            break
        asks.append(ask)
        oracle.tell(number, ask.values, None if number % 3 == 2 else score(ask))
    return asks


def enough(kind: str) -> int:
    """Return how many asks show what an oracle does: Optuna's begin to learn after 10 finished."""
    return 21 if kind in ("tpe", "gp") else 9


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_asks_the_same_and_another_seed_something_else(kind):
    first, again, other = (run(make(kind, seed=seed), enough(kind)) for seed in (3, 3, 4))
    assert len(first) >= 8
    assert first == again
    assert (first == other) == (kind == "grid")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["early", "midway", "late"])
def test_a_replay_goes_on_as_if_it_had_never_been_cut(kind, where):
    undisturbed = run(make(kind), enough(kind))
    cut = {"early": 1, "midway": len(undisturbed) // 2, "late": len(undisturbed) - 1}[where]
    oracle = make(kind)
    for number, ask in enumerate(undisturbed[:cut]):
        recorded = json.loads(json.dumps([ask.values, ask.oracle]))
        oracle.ask_again(number, *recorded)
        oracle.tell(number, recorded[0], None if number % 3 == 2 else score(ask))
    rest = []
    for number in range(cut, len(undisturbed)):
        ask = oracle.ask(number)
        assert ask is not None
        rest.append(ask)
        oracle.tell(number, ask.values, None if number % 3 == 2 else score(ask))
    assert rest == undisturbed[cut:]


@pytest.mark.parametrize("kind", ["random", "grid", "hyperband"])
def test_a_record_that_the_oracle_would_not_have_asked_is_refused(kind):
    oracle = make(kind)
    ask = make(kind).ask(0)
    assert ask is not None
    changed = {**ask.values, "filters_1": 8 if ask.values["filters_1"] != 8 else 16}
    with pytest.raises(LedgerError, match="expected the answer on record for trial 0"):
        oracle.ask_again(0, changed, ask.oracle)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_plain_and_have_no_entries_of_the_oracle(kind):
    for ask in run(make(kind), 6):
        assert json.loads(json.dumps(ask.values)) == ask.values
        assert not [name for name in ask.values if name.startswith("tuner/")]
        assert outside(small_space() if kind != "grid" else whole_space(), ask.values) == []


@pytest.mark.parametrize("kind", KINDS)
def test_failures_in_a_row_do_not_end_the_search(kind):
    oracle = make(kind)
    for number in range(5):
        ask = oracle.ask(number)
        assert ask is not None
        oracle.tell(number, ask.values, None)


@pytest.mark.parametrize("kind", ["random", "grid", "bayesian", "tpe", GP])
def test_pruned_trials_are_taken_in_and_a_replay_of_them_goes_on_alike(kind):
    def ends(oracle, number, ask):
        """Every second trial is pruned after two epochs."""
        if number % 2:
            curve = {1: score(ask) / 2, 2: score(ask)}
            oracle.tell(number, ask.values, None, curve=curve)
        else:
            oracle.tell(number, ask.values, score(ask))

    def go_on(oracle, numbers):
        for number in numbers:
            ask = oracle.ask(number)
            assert ask is not None
            ends(oracle, number, ask)
            yield ask

    count = enough(kind) + 3
    undisturbed = list(go_on(make(kind), range(count)))
    oracle = make(kind)
    for number, ask in enumerate(undisturbed[:-1]):
        oracle.ask_again(number, ask.values, ask.oracle)
        ends(oracle, number, ask)
    assert list(go_on(oracle, [count - 1])) == undisturbed[-1:]


def test_pruned_trials_do_not_count_until_a_sampler_is_asked(monkeypatch):
    asked = []
    original = samplers.TPEOracle.make_sampler
    monkeypatch.setattr(
        samplers.TPEOracle,
        "make_sampler",
        lambda self, seed: asked.append(len(oracle.keras_tuner.trials)) or original(self, seed),
    )
    oracle = make("tpe")
    for number in range(2 * samplers.STARTUP):
        ask = oracle.ask(number)
        pruned = number % 2 == 0
        curve = {1: score(ask)} if pruned else None
        oracle.tell(number, ask.values, None if pruned else score(ask), curve=curve)
    assert not asked
    oracle.ask(2 * samplers.STARTUP)
    assert set(asked) == {2 * samplers.STARTUP}


@pytest.mark.parametrize("kind", ["random", "grid", "bayesian", "hyperband", "tpe", GP])
def test_refused_trials_are_taken_in_and_tpe_learns_what_is_allowed(kind):
    oracle = make(kind)
    refused = []
    for number in range({"grid": 16, "bayesian": 12}.get(kind, 30)):
        ask = oracle.ask(number)
        if ask is None:
            break
        beyond = ask.values["filters_1"] / 16 - 1
        refused.append(beyond > 0)
        if beyond > 0:
            oracle.tell(number, ask.values, None, violation=beyond)
        else:
            oracle.tell(number, ask.values, score(ask))
    assert len(refused) >= 8
    if kind == "tpe":
        assert sum(refused[20:]) < sum(refused[:10])


@pytest.mark.parametrize("kind", ["random", "tpe", GP])
def test_a_float_with_steps_is_taken_in_by_its_step(kind):
    space = keras_tuner.HyperParameters()
    space.Float("dropout", 0.0, 0.5, step=0.1, default=0.3)
    assert not outside(space, {"dropout": 0.3})  # KerasTuner's step is .30000000000000004
    assert outside(space, {"dropout": 0.35}) == ["dropout"]
    oracle = make(kind, space=space)
    oracle.tell(0, {"dropout": 0.3}, 0.5)
    ask = oracle.ask(1)
    assert ask.values["dropout"] in space.space[0].values


@pytest.mark.parametrize("kind", ["random", "grid", "tpe", GP])
def test_a_small_space_is_exhausted_without_asking_twice(kind):
    space = narrow(small_space(), {"dense_units": [0, 64], "optimiser": "adam"})
    space = narrow(space, {"learning_rate": [0.001, 0.002], "filters_1": [8, 16]})
    oracle, seen = make(kind, space=space), []
    for number in range(9):
        ask = oracle.ask(number)
        if ask is None:
            break
        seen.append(ask.values)
        oracle.tell(number, ask.values, score(ask))
    assert not oracle.idle
    assert len(seen) == 8
    assert len({json.dumps(values, sort_keys=True) for values in seen}) == 8


@pytest.mark.parametrize("kind", ["random", "bayesian", "hyperband", "tpe"])
def test_a_trial_of_somebody_else_is_taken_in_as_a_finished_one(kind):
    baseline = Space((8, 8, 1), 10, 100, Protocol(4)).baseline_values("vgg_bn")
    oracle = make(kind)
    assert not oracle.starts_with(baseline)
    oracle.tell(0, baseline, 0.5)
    asks = [oracle.ask(number) for number in range(1, 4)]
    assert all(ask is not None and ask.values != baseline for ask in asks)
    assert oracle.keras_tuner.trials["0000"].score == 0.5


def test_a_trial_outside_the_narrowed_space_is_not_told():
    oracle = make("bayesian", space=narrow(whole_space(), {"optimiser": "sgd"}))
    baseline = Space((8, 8, 1), 10, 100, Protocol(4)).baseline_values("vgg_bn")
    oracle.tell(0, baseline, 0.5)
    assert oracle.keras_tuner.trials == {}


def test_grid_begins_with_the_baseline_and_visits_every_combination_once():
    baseline = Space((8, 8, 1), 10, 100, Protocol(4)).baseline_values("vgg_bn")
    oracle = make("grid")
    assert oracle.starts_with(baseline)
    asks = run(oracle, 100)
    assert asks[0].values == baseline
    seen = {(ask.values["filters_1"], ask.values["dense_units"]) for ask in asks}
    assert len(asks) == len(seen) == 5 * 4
    assert not oracle.idle


def test_grid_does_not_wait_for_a_trial_to_end_before_the_next():
    waiting, told = make("grid"), make("grid")
    asks = [waiting.ask(number) for number in range(20)]
    assert None not in asks
    assert [ask.values for ask in asks] == [ask.values for ask in run(told, 20)]
    assert waiting.ask(20) is None


def test_hyperband_promotes_the_better_half_and_names_their_parents():
    oracle = make("hyperband")
    asks = []
    for number in range(100):
        ask = oracle.ask(number)
        if ask is None:
            break
        asks.append(ask)
        oracle.tell(number, ask.values, score(ask))
    assert not oracle.idle
    planned = OracleTable(kind="hyperband").brackets(4)
    assert len(asks) == sum(trials for trials, _, _ in planned)
    promoted = [ask for ask in asks if ask.parent is not None]
    assert promoted
    for ask in promoted:
        parent = asks[ask.parent]
        assert ask.values == parent.values
        assert (parent.epochs or 0) < (ask.epochs or 0) <= 4


def test_hyperband_draws_another_for_one_that_was_refused():
    oracle, number, promoted = make("hyperband"), 0, 0
    for _ in range(500):
        ask = oracle.ask(number)
        if ask is None:
            break
        promoted += ask.parent is not None
        refused = ask.parent is None and number % 3 == 0
        told = {"violation": 1.0} if refused else {}
        oracle.tell(number, ask.values, None if refused else score(ask), **told)
        number += 1
    brackets = OracleTable(kind="hyperband").brackets(4)
    assert ask is None
    assert promoted == sum(trials for trials, start, _ in brackets if start)


def test_hyperband_waits_while_a_promotion_hangs_on_running_trials():
    oracle = make("hyperband")
    number = 0
    while (ask := oracle.ask(number)) is not None:
        number += 1
        assert number < 50
    assert ask is None
    assert oracle.idle


@pytest.mark.parametrize(("epochs", "trials", "total"), [(9, 23, 75), (27, 70, 375)])
def test_hyperbands_plan_is_known_before_it_begins(epochs, trials, total):
    plan = OracleTable(kind="hyperband").brackets(epochs)
    assert sum(count for count, _, _ in plan) == trials
    assert sum(count * (end - start) for count, start, end in plan) == total


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_hyperbands_plan_is_kerastuners(factor):
    objective = keras_tuner.Objective("val_accuracy", "max")
    for epochs in range(1, 82):
        oracle = kt.HyperbandOracle(objective=objective, max_epochs=epochs, factor=factor)
        plan = [
            (
                oracle._get_size(bracket, number),
                oracle._get_epochs(bracket, number - 1) if number else 0,
                oracle._get_epochs(bracket, number),
            )
            for bracket in reversed(range(oracle._get_num_brackets()))
            for number in range(oracle._get_num_rounds(bracket))
        ]
        assert OracleTable(kind="hyperband", factor=factor).brackets(epochs) == plan


def test_bayesian_has_no_memory_of_what_is_running():
    """A running trial counts as the worst so far, so that the next ask follows from the record."""
    told = run(make("bayesian"), 7)
    with_fit, without_fit = make("bayesian"), make("bayesian")
    for number, ask in enumerate(told):
        for oracle in (with_fit, without_fit):
            oracle.ask_again(number, ask.values, ask.oracle)
            if number < 6:
                oracle.tell(number, ask.values, score(ask))
    with_fit.ask(7)  # fits its model: the other oracle never did
    without_fit.ask_again(7, with_fit.keras_tuner.trials["0007"].hyperparameters.values, {})
    assert with_fit.ask(8) == without_fit.ask(8)


def test_narrowing_fixes_and_lists_values():
    space = narrow(
        whole_space(),
        {"optimiser": "sgd", "filters_1": [32, 64], "dropout_1": 0, "residual": True},
    )
    entries = {hp.name: hp for hp in space.space}
    assert list(entries["filters_1"].values) == [32, 64]
    assert list(entries["optimiser"].values) == ["sgd"]
    assert list(entries["dropout_1"].values) == [0.0]
    assert list(entries["residual"].values) == [True]
    oracle = Oracle(OracleTable(), space, objective="val_accuracy", epochs=2, trials=5, seed=1)
    for number in range(5):
        ask = oracle.ask(number)
        assert ask is not None
        assert ask.values["optimiser"] == "sgd"
        assert "sgd_learning_rate" in ask.values
        assert "learning_rate" not in ask.values


def test_narrowing_says_all_that_is_wrong_at_once():
    with pytest.raises(DefinitionError) as error:
        narrow(whole_space(), {"filter_1": 3, "filters_1": [33], "learning_rate": 5})
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert "[space] filter_1: no such hyperparameter" in lines[0]
    assert "[space] filters_1: expected 8, 16, 32, 64, 128; received [33]" in lines[1]
    assert "[space] learning_rate: expected 0.0003 to 0.01; received [5]" in lines[2]


def test_a_configuration_of_ones_own_is_completed_from_the_baseline():
    space = Space((8, 8, 1), 10, 100, Protocol(4))
    baseline = space.baseline_values("vgg_bn")
    mine = {"depth": 2, "filters_2": 8, "schedule": "cosine", "optimiser": "sgd"}
    values = complete(whole_space(), baseline, mine)
    assert values["filters_2"] == 8
    assert values["warmup"] == 0.0
    assert "filters_3" not in values
    assert values["momentum"] == 0.9
    assert "learning_rate" not in values
    changed = {name for name in baseline if values.get(name) != baseline[name]}
    gone = {name for name in baseline if name.endswith("_3")} | {"learning_rate"}
    assert changed == set(mine) | gone
    assert outside(whole_space(), values) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"filter": 3}, "expected a hyperparameter of the space"),
        ({"filters_1": 33}, "expected 8, 16, 32, 64, 128"),
        ({"depth": 2, "filters_3": 8}, "with the other values filters_3 has no effect"),
        ({"residual": 1}, "expected true, false"),
    ],
)
def test_a_wrong_configuration_of_ones_own_is_refused(values, message):
    baseline = Space((8, 8, 1), 10, 100, Protocol(4)).baseline_values("vgg_bn")
    with pytest.raises(DefinitionError, match=message):
        complete(whole_space(), baseline, values)


def test_gp_without_torch_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DefinitionError, match="gp needs torch, which is not installed"):
        make("gp")
