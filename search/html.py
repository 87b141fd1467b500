"""What a search found, as one HTML page to look at: ``report.html`` of the run directory."""

from __future__ import annotations

import shlex

from search.campaign import FINISHED
from search.findings import Findings, borrowing, coverage, host_counts, left, nothing_pays, objective, plan, two, verdict, work
from search.markup import Markup, document, element, facts, join, picture, table
from search.plots import readable

SPACE = "\N{NO-BREAK SPACE}"

ARMS = {
    "deployed": "the plan of this search",
    "original": "the original alone",
    "host_free": "best plan without a host",
    "probe": "best plan with probes alone",
    "paper_pair": "the original and one cross path",
    "one_host": "best plan that borrows from one host alone",
    "mixture_lout_1": "best plan that keeps raw inputs at home",
    "mixture": "best plan of all",
    "distilled": "best plan without a host, small distilled networks beside its paths",
    "mixture_distilled": "best plan of all, small distilled networks beside its paths",
    "replica": "a full copy of the model on each host's share, by the throughput model",
    "replica_host_free": "the best plan without a host, copied to each host's share as well",
    "replica_distilled": "the plan without a host and its small networks, copied likewise",
}

CONTROLS = {
    "random_host": "the same blocks with random weights",
    "links_only": "both links, no host block",
    "skip": "the same local blocks, no host",
}

FILES = {
    "result.json": "what this page says, as JSON",
    "plan.json": "the paths to deploy, those of the best plan without a host among them; rates are solved where it is served",
    "evaluations.csv": "every evaluation, those without training included",
    "journal.jsonl": "the same as they were measured; a search resumes from it",
    "profile.json": "measured times of blocks and links",
    "config.json": "the configuration with every default written out",
    "splits.npz": "which samples were used for training, validation and test",
}


def report_page(findings: Findings) -> str:
    """The page, complete in itself: pictures are inside it, nothing is fetched and nothing runs."""
    config = findings.config
    hosts = ", ".join(f"{name} (kappa {host.kappa:g})" for name, host in config.hosts.items()) or "none"
    title = f"Paths for {config.local}"
    return document(
        title,
        element("h1", title),
        element("p", f"Hosts: {hosts}. Data: {config.data}.", class_="note"),
        element("p", verdict(findings), class_="verdict nothing" if nothing_pays(findings) else "verdict"),
        element("p", borrowing(findings), class_="plainly"),
        _facts(findings),
        _section("The plan", plan(findings), _plan_table(findings), _picture(findings, "winning_plan")),
        _section("Throughput and loss", None, _picture(findings, "pareto")),
        _section("The plan and its rivals", None, _arms_table(findings)),
        _section("Is it the host?", host_counts(findings), _controls_table(findings)),
        _section("Least loss at fixed speed-ups", None, _speedups_table(findings)),
        _section("Forecasts", coverage(findings), _picture(findings, "forecasts")),
        _section("The search, training by training", None, _trace(findings)),
        _section("All trained paths", None, _trained_table(findings)),
        _section("What failed", None, _failed_table(findings)),
        _section("Serve it", None, _files(findings)),
    )


def _section(title: str, said: str | None, *content: Markup) -> Markup:
    return element("section", element("h2", title), "" if said is None else element("p", said), *content)


def _note(text: str) -> Markup:
    return element("p", text, class_="note")


def _named(name: str, said: str) -> Markup:
    return join(element("strong", readable(name)), f": {said}")


def _path(path: str) -> Markup:
    """A path that breaks between segments only."""
    first, *others = path.split(" > ")
    return element("code", element("span", first, class_="whole"), *(join(" ", element("span", f"> {s}", class_="whole")) for s in others))


def _shares(paths: dict[str, float]) -> Markup:
    return join(*(element("div", f"{100 * share:.1f}{SPACE}%{SPACE}", _path(path)) for path, share in paths.items()))


def _picture(findings: Findings, name: str) -> Markup:
    """The picture ``name``, where it was drawn, with what it shows in words."""
    if name not in findings.pictures:
        return Markup()
    arms, paths = findings.result["arms"], findings.result["deployed"]["paths"]
    at_limit = ", ".join(
        f"{ARMS[arm]} {arms[arm]['throughput_ratio']:.2f}"
        for arm in ("host_free", "distilled", "mixture", "replica", "replica_host_free")
        if arm in arms
    )
    alt = {
        "winning_plan": "Blocks of each service in a row, those that run in green, links as arrows: "
        + "; ".join(f"{100 * share:.1f} % of the samples take {path}" for path, share in paths.items()),
        "pareto": f"Throughput over the original's against average-accuracy loss. Times the original at the loss limit: {at_limit}",
        "forecasts": "For each training the interval that was forecast for its accuracy, and a mark where it came out",
        "search_trace": "For each training of the search its accuracy from least squares and as trained, in order from above",
    }
    return picture(findings.pictures[name], alt[name])


def _facts(findings: Findings) -> Markup:
    config, result = findings.config, findings.result
    offers = join(*(element("div", f"{name}: {100 * host.kappa:g} % of its server") for name, host in config.hosts.items()))
    original = (
        f"{100 * findings.accuracy_original:.2f} % right on validation images, "
        f"{100 * result['best']['accuracy_original_test']:.2f} % on test images; {findings.original_per_second:.0f} images a second"
    )
    return facts(
        [
            ("Original", original),
            ("Loss limit", f"{config.loss_points:g} points of average accuracy"),
            ("Hosts offer (kappa)", offers or "no host in the space"),
            ("Objective", objective(config)),
            ("Space", f"{result['paths_enumerated']} paths, {result['candidates']} of them can serve more than the original alone"),
            ("Stopped because", result["stopped_because"]),
            ("Left", left(findings)),
            ("Work", work(findings)),
            ("Sampler, seed", f"{result['sampler']}, {result['seed']}"),
        ]
    )


def _plan_table(findings: Findings) -> Markup:
    kinds = {row["path"]: row["kind"] for row in findings.rows(*FINISHED)}
    deployed = findings.result["deployed"]
    rows = []
    for path, share in sorted(deployed["paths"].items(), key=lambda item: -item[1]):
        plain, _, rerun = path.partition(" | rerun=")
        kind = kinds.get(plain, "original") + (", gated" if rerun else "")
        accuracy = deployed["accuracies"][path]
        lost = 100 * (findings.accuracy_original - accuracy)
        rows.append((f"{100 * share:.1f}", kind, _path(path), two(100 * accuracy), two(lost)))
    columns = ("share, %", "kind", "path", "accuracy, %", "loss, points")
    note = (
        "A path lists the blocks it runs, counted from 0, the last number left out; each > is a link. Of a gated path the original answers the "
        "share 'rerun' again, where the path is least sure. Accuracies are on validation images."
    )
    return join(table(columns, rows, numbers=("share, %", "accuracy, %", "loss, points")), _note(note))


def _arms_table(findings: Findings) -> Markup:
    rows = [
        (
            _named(name, ARMS[name]),
            two(arm["throughput_ratio"]),
            two(arm["average_accuracy_loss_points"]),
            _shares(arm.get("paths", {})),
        )
        for name, arm in {"deployed": findings.result["deployed"], **findings.result["arms"]}.items()
    ]
    shown = table(("plan", "times the original", "loss, points", "paths"), rows, numbers=("times the original", "loss, points"))
    plain = {name: two(arm["throughput_ratio"]) for name, arm in findings.result["without_gates"].items()}
    return join(shown, _note(f"Without gated paths: best plan without a host {plain['host_free']}, best plan of all {plain['mixture']}."))


def _controls_table(findings: Findings) -> Markup:
    controls = findings.result["controls"]
    crosses = [control["cross_accuracy_validation"] for control in controls.values() if control is not None]
    if not crosses:
        return Markup()
    rows = []
    for name, said in CONTROLS.items():
        accuracy = controls[name]["accuracy_validation"] if controls[name] is not None else None
        figures = ("not trained", "-") if accuracy is None else (two(100 * accuracy), two(100 * (crosses[0] - accuracy)))
        rows.append((_named(name, said), figures[0], two(100 * crosses[0]), figures[1]))
    columns = ("control", "accuracy, %", "cross path, %", "cross path above it, points")
    return table(columns, rows, numbers=columns[1:])


def _speedups_table(findings: Findings) -> Markup:
    rows = []
    for speedup, found in findings.result["fixed_speedups"].items():
        figures = ("out of reach", "-")
        if found is not None:
            figures = (two(found["average_accuracy_loss_points"]), f"{100 * found['host_share']:.0f}")
        rows.append((speedup, *figures))
    columns = ("times the original", "least loss, points", "of the busiest host's server, %")
    return table(columns, rows, numbers=columns)


def _trace(findings: Findings) -> Markup:
    return _picture(findings, "search_trace") if findings.rows("trained", "stopped") else element("p", "Nothing was trained.")


def _trained_table(findings: Findings) -> Markup:
    rows = [
        (
            readable(row["role"]),
            row["kind"],
            _path(row["path"]),
            two(100 * row["accuracy"]),
            two(row["loss_points"]),
            two(row["host_efficiency"]),
            two(row["pair_throughput_ratio"]),
            f"{row['seconds']:.1f}",
            row["fidelity"],
        )
        for row in findings.rows(*FINISHED, "stopped")
    ]
    if not rows:
        return element("p", "None.")
    columns = ("for", "kind", "path", "accuracy, %", "loss, points", "e", "pair", "seconds", "end")
    note = (
        "In the order they were measured, on validation images. e: local work saved per host work; a full copy of the model has 1. "
        "Pair: times the original that the original and this path serve at maximum offload, whatever is lost. Stopped: given up at a rung, "
        "because others add more."
    )
    return join(table(columns, rows, numbers=columns[3:8]), _note(note))


def _failed_table(findings: Findings) -> Markup:
    failed = findings.result["failed"]
    if not failed:
        return element("p", "Nothing.")
    return table(("path", "reason"), [(_path(path), reason) for path, reason in failed.items()])


def _files(findings: Findings) -> Markup:
    command = f"serve run deployments:build_app {shlex.quote(f'run_dir={findings.run_dir}')}"
    rows: list[tuple[object, str]] = [(element("a", name, href=name), said) for name, said in FILES.items()]
    pictures = [element("div", element("a", f"{name}.png", href=f"{name}.png")) for name in findings.pictures]
    rows += [(join(*pictures), "the pictures of this page"), (element("a", "stores/", href="stores/"), "trained links, by provider")]
    return join(element("pre", command), element("p", "Beside this page lie:"), table(("file", "content"), rows))
