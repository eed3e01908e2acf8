"""Print results for people: one function for each kind of result."""

import shlex
from collections.abc import Collection
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rapm_cli.cli.console import Output

NO_VERDICT = "none, because there is no comparison; see the contact sheet"
MOSTLY = 0.5  # share of an update lost to rounding that is worth a warning

if TYPE_CHECKING:
    from rapm_cli.distill.distill import Distilled
    from rapm_cli.distill.resolve_run import ResolvedRun
    from rapm_cli.export.export import ExportResult


def distilled(out: Output, begun: "ResolvedRun", done: "Distilled") -> None:
    """Print the result of a distillation."""
    from rapm_cli.evaluate.record import split_record, split_title, table

    comparison = split_record(done.comparison) if done.comparison else None
    if comparison:
        out.table(split_title(comparison), *table(comparison))
    spent = ", ".join(f"{name} {seconds:.{0 if seconds >= 1 else 1}f} s" for name, seconds in done.seconds.items())
    out.say(f"{spent}; peak memory {done.peak_mib:.0f} MiB; {done.machine}")
    out.fact("verdict", done.verdict or NO_VERDICT)
    run_folder(out, begun)
    out.result(
        {
            "run": str(done.run.folder),
            "lora": str(done.run.lora),
            "sheet": str(done.run.sheet),
            "seconds": done.seconds,
            "peak_mib": done.peak_mib,
            "machine": done.machine,
            "comparison": comparison,
            "verdict": done.verdict,
        }
    )


def finished(out: Output, begun: "ResolvedRun") -> None:
    """Print a run that was already finished."""
    out.say(f"this run is finished; give --iterations above {begun.settings.training.iterations} to continue it")
    result = begun.run.result()
    if words := result.get("verdict"):  # not in results of older versions
        out.fact("verdict", str(words))
    run_folder(out, begun)
    out.result({"run": str(begun.run.folder), "lora": str(begun.run.lora), **result})


def run_folder(out: Output, begun: "ResolvedRun") -> None:
    """Print the folder of a run, its contact sheet, and the next command."""
    folder, steps = begun.run.folder, begun.settings.teacher.num_slots
    out.fact("run", str(folder))
    out.fact("sheet", str(begun.run.sheet))
    prompt = min(begun.settings.prompts, key=len)  # the run's own, so that it suits the base
    out.fact("next", f"rapm generate {shlex.quote(prompt)} --steps {steps} --lora {shlex.quote(str(folder))}")


def exported(out: Output, made: "ExportResult") -> None:
    """Print the files of an export, the programs that read them, and what rounding changed."""
    from rapm_cli.formats.programs import folders
    from rapm_cli.inspect.inspect import size_in_words

    out.data(f"{made.path}  {size_in_words(made.total_bytes)}, read back and equal")
    read_beside = {one.program for file in made.files for one in file.verdicts if not one.reason}
    for file in made.files:
        if file.path != made.path:
            out.data(f"{file.path}  {size_in_words(file.bytes)}")
        out.fact("sha256", file.sha256)
        if file.verdicts:
            programs(out, [asdict(one) for one in file.verdicts], read_beside)
        places = folders(file.readers, is_lora=made.report is None)
        if places:
            out.fact("put it in", "; ".join(f"{program}: {folder}" for program, folder in places.items()))
    if made.url:
        out.fact("published", made.url)
    record: dict[str, Any] = {"path": str(made.path), "bytes": made.total_bytes, "verified": True, "url": made.url}
    record["files"] = [asdict(file) | {"path": str(file.path)} for file in made.files]
    if report := made.report:
        record |= asdict(report)
        out.data(
            f"{report.modules} modules merged; rounding changed the update by {report.mean_lost:.2%} "
            f"on average, {report.worst_lost:.2%} at worst"
        )
        if report.mean_lost > MOSTLY:
            out.warn("rounding lost most of the update; use --dtype fp32, or the LoRA as a file of its own")
    out.result(record)


def programs(out: Output, verdicts: list[dict[str, str]], read_beside: Collection[str] = ()) -> None:
    """Print the programs that read a LoRA, and the reasons of those that do not.

    Args:
        out: Prints.
        verdicts: For each program its name and the reason why it does not read the file; empty if it does.
        read_beside: Programs that read another file of the same export; their reasons come without a remedy.
    """
    from rapm_cli.formats.programs import KOHYA_HINT

    out.fact("loads in", ", ".join(one["program"] for one in verdicts if not one["reason"]) or "nothing known")
    for reason in dict.fromkeys(one["reason"] for one in verdicts if one["reason"]):
        refusing = [one["program"] for one in verdicts if one["reason"] == reason]
        words = reason.removesuffix(f"; {KOHYA_HINT}") if set(refusing) <= set(read_beside) else reason
        out.fact("not in", f"{', '.join(refusing)}: {words}")


def checked_metrics(out: Output, record: dict[str, Any]) -> None:
    """Print a check of the metrics: their answers to every damage, what they see, and what they do not see."""
    from rapm_cli.evaluate.check_metrics import check_tables

    for title, columns, rows in check_tables(record):
        out.table(title, columns, rows)
    limits(out, record)
    out.fact("machine", record["machine"])


def limits(out: Output, record: dict[str, Any]) -> None:
    """Print what each metric does not see."""
    for name, each in record["legend"].items():
        out.data(f"{each['title']} ({name}) does not see {each['does_not_see']}")


def evaluation(out: Output, record: dict[str, Any]) -> None:
    """Print an evaluation: a table for each split, the differences of two students, and what values depend on."""
    from rapm_cli.evaluate.record import column, tables

    for title, columns, rows, note in tables(record):
        out.table(title, columns, rows)
        if note:
            out.data(note)
    for name, one in record["differences"].items():
        interval = f"[{one['low']:.4g}, {one['high']:.4g}]"
        more = f"{one['mean']:+.4g} {interval}, p {one['p_value']:.2g}"
        won = f"more in {one['first']:,} of {one['first'] + one['second']:,} prompts, p {one['p_sign']:.2g}"
        out.data(f"{column(name, record)}, first minus second: {more}; {won}")
    if record["beside_teacher"]:
        out.fact("teacher", f"models are compared with it on the first {record['beside_teacher']:,} prompts")
    if record["with_other_noise"]:
        out.fact("other noise", f"the first {record['with_other_noise']:,} prompts are sampled with other noise too")
    limits(out, record)
    for name, each in record["reference"].items():
        out.fact("reference", f"{name}: {each['source']}; {each['made']}")
    for identity in record["extractors"].values():
        out.fact("network", identity)
    out.fact("images", f"{record['preparation']}, rounded {record['rounding']}; {record['batch']} at once")
    out.fact("versions", ", ".join(f"{name} {number}" for name, number in record["versions"].items()))
    out.fact("machine", record["machine"])
    out.fact("fingerprint", record["fingerprint"])
    out.fact("report", record["report"])
