"""The text of `medx status`, from what `report.run_status` found."""

import datetime

from megatron_medx.config.checkpoint_folders import METADATA_FILE, TRACKER_FILE
from megatron_medx.config.validation import MAIN_SET
from megatron_medx.status.history_lines import attention, happened, jobs, starts
from megatron_medx.status.words import bytes_text, counted, duration

_LACKS = {METADATA_FILE: f"no {METADATA_FILE}", TRACKER_FILE: f"{TRACKER_FILE} names none as new"}
"""What a checkpoint lacks that is being saved, or whose save was cut short."""


def status_lines(report: dict) -> list[str]:
    """Lines for a person: the state, then what needs one; what the run has nothing of has no line."""
    read_at = datetime.datetime.fromisoformat(report["read_at"])
    num_ranks = "" if report["num_ranks"] is None else f", {counted(report['num_ranks'], 'rank')}"
    rows = [
        ("run", f"{report['folder']}, {report['recipe'] or 'no recipe yet'}{num_ranks}"),
        *_state(report["state"], read_at),
        *attention(report),
        *_step(report),
        *_loss(report),
        *_exports(report["exports"]),
        *_speed(report["speed"]),
        *_checkpoints(report),
        *starts(report),
        *jobs(report),
        *happened(report),
        *_trouble(report),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def _state(state: dict, read_at: datetime.datetime) -> list[tuple[str, str]]:
    since = datetime.datetime.fromisoformat(state["since"])
    ago = duration((read_at - since).total_seconds())
    if state["name"] in ("running", "starting", "preflight"):
        when = f"last written {ago} ago"
    else:
        when = f"since {since:%Y-%m-%d %H:%M:%S} UTC, {ago} ago"
    rows = [("state", f"{state['name']}: {state['why']}; {when}")]
    quoted = (state["error"] or "").splitlines()
    return rows + [("error" if number == 0 else "", line) for number, line in enumerate(quoted)]


def _step(report: dict) -> list[tuple[str, str]]:
    if report["steps"] is None:
        return []
    text, left = f"{report['step']:,} of {report['steps']:,} ({report['step'] / report['steps']:.1%})", report["left"]
    if left is not None:
        text += f", {duration(left['time_s'])} left {'with' if left['with_saves'] else 'without'} saves and validation"
    return [("step", text)]


def _loss(report: dict) -> list[tuple[str, str]]:
    loss, validation, rows = report["loss"], report["validation"], []
    if loss is not None:
        text = "none is finite" if loss["last"] is None else f"{loss['last']:.4f} nats/token at step {loss['step']:,}"
        if loss["num_steps_averaged"]:
            change = loss["mean"] - loss["mean_before"]
            num = counted(loss["num_steps_averaged"], "step")
            text += f"; mean of the last {num} {loss['mean']:.4f}, {change:+.4f} to as many before"
        if loss["num_without"]:
            text += f"; {counted(loss['num_without'], 'recent step')} without a finite one"
        rows.append(("loss", text))
    return rows + [("validation" if number == 0 else "", _validated(one)) for number, one in enumerate(validation)]


def _validated(one: dict) -> str:
    """A validation set; the main one is called by nothing but the row."""
    text = "" if one["set"] == MAIN_SET else f"{one['set']}: "
    text += "not finite" if one["loss"] is None else f"{one['loss']:.4f} nats/token"
    text += f" at step {one['step']:,}"
    if None not in (one["loss"], one["loss_before"]):
        text += f", {one['loss'] - one['loss_before']:+.4f} to the one before"
    if one["best_loss"] is not None:
        text += f"; best {one['best_loss']:.4f} at step {one['best_step']:,}"
    if one["bits_per_byte"] is not None:
        text += f"; {one['bits_per_byte']:.4f} bits/byte"
    if one["accuracy"] is not None:
        text += f"; {one['accuracy']:.1%} of {counted(one['num_questions'], 'question')} right"
    return text


def _exports(exports: dict | None) -> list[tuple[str, str]]:
    if exports is None:
        return []
    if exports["damaged"]:
        return [("exports", "exports/index.json is damaged")]
    steps = ", ".join(f"{step:,}" for step in exports["steps"][-5:])
    text = f"{len(exports['steps'])} kept" + (f", the last of step {steps}" if steps else "")
    text += f"; {exports['deleted']} gave way to better ones" if exports["deleted"] else ""
    return [("exports", text + ("" if exports["best"] is None else f"; best: step {exports['best']:,}"))]


def _speed(speed: dict | None) -> list[tuple[str, str]]:
    if speed is None:
        return []
    parts = [f"{speed['step_time_s']:.3g} s/step"]
    if speed["tokens_per_s"] is not None:
        parts.append(f"{speed['tokens_per_s']:,.0f} tokens/s")
    if speed["model_tflops_per_s_per_rank"] is not None:
        parts.append(f"{speed['model_tflops_per_s_per_rank']:.3g} model TFLOP/s a rank")
    over = f"(medians of the last {counted(speed['num_steps'], 'step')})"
    return [
        ("speed", f"{', '.join(parts)} {over}"),
        ("data wait", f"{speed['data_wait_share']:.2%} of step time, on the rank that reports"),
    ]


def _checkpoints(report: dict) -> list[tuple[str, str]]:
    found, saves = report["checkpoints"], report["saves"]
    parts = []
    if found["every_steps"] is not None:
        parts.append(f"{found['num'] or 'none yet'}, one every {counted(found['every_steps'], 'step')}")
        resume = "a resume would find none"
        if found["resume_step"] is not None:
            resume = f"a resume starts from step {found['resume_step']:,}"
        since = f"{counted(found['steps_since'], 'step')} since" if found["steps_since"] else "nothing since"
        parts.append(f"{resume}, {since}")
    if saves["num"]:
        each = "" if saves["median_s"] is None else f", {saves['median_s']:.3g} s each (median)"
        parts.append(f"{counted(saves['num'], 'save')} so far{each}, the last of step {saves['last'][-1].get('step')}")
    if num := report["incidents"]["deleted"]["num"]:
        parts.append(f"{num:,} deleted for newer ones")
    rows = [("checkpoints", "; ".join(parts))] if parts else []
    for entry in found["last"]:
        whole = "whole" if entry["whole"] else f"NOT WHOLE: {', '.join(_LACKS[name] for name in entry['missing'])}"
        whole += "" if entry["checksums"] else ", no checksums"
        text = f"step {entry['step']:,}, {bytes_text(entry['bytes'])}, {duration(entry['age_s'])} old, {whole}"
        rows.append(("", text + ("" if entry["save_s"] is None else f", saved in {entry['save_s']:.3g} s")))
    return rows


def _trouble(report: dict) -> list[tuple[str, str]]:
    rows, bad, rejects = [], report["bad_steps"], report["rejects"]
    if bad is not None:
        last = bad["last"]
        what = "a spike of the loss" if last["what"] == "spike" else f"{last['what']} not finite"
        text = f"{bad['num']:,}, the last step {last['step']}: {what}, loss {last['loss']}"
        text += "" if last["applied"] is None else f", update {'applied' if last['applied'] else 'skipped'}"
        text += "" if last["num_samples"] is None else f", {counted(last['num_samples'], 'sample')}"
        rows.append(("bad steps", f"{text} (bad_steps.jsonl)"))
    if rejects["damaged"]:
        rows.append(("rejects", f"{counted(rejects['damaged'], 'line')} of damaged samples (rejects.jsonl)"))
    if rejects["too_long"]:
        rows.append(("too long", f"{counted(rejects['too_long'], 'sample')} (data/rejects.jsonl)"))
    return rows
