"""The text of `medx status`, from what `report.run_status` found."""

import datetime

from megatron_medx.config.checkpoint_folders import METADATA_FILE, TRACKER_FILE

_LACKS = {METADATA_FILE: f"no {METADATA_FILE}", TRACKER_FILE: f"{TRACKER_FILE} names none as new"}
"""What a checkpoint lacks that is being saved, or whose save was cut short."""


def status_lines(report: dict) -> list[str]:
    """Lines for a person, the state first; what the run has nothing of has no line."""
    read_at = datetime.datetime.fromisoformat(report["read_at"])
    rows = [
        ("run", f"{report['folder']}, {report['recipe'] or 'no recipe'}, {_counted(report['num_ranks'], 'rank')}"),
        *_state(report["state"], read_at),
        ("step", _step(report)),
        *_loss(report),
        *_exports(report["exports"]),
        *_speed(report["speed"]),
        *_checkpoints(report["checkpoints"]),
        *_launches(report["launches"]),
        *_trouble(report),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def _state(state: dict, read_at: datetime.datetime) -> list[tuple[str, str]]:
    since = datetime.datetime.fromisoformat(state["since"])
    ago = duration((read_at - since).total_seconds())
    if state["name"] == "running":
        when = f"last written {ago} ago"
    else:
        when = f"since {since:%Y-%m-%d %H:%M:%S} UTC, {ago} ago"
    rows = [("state", f"{state['name']}: {state['why']}; {when}")]
    quoted = (state["error"] or "").splitlines()
    return rows + [("error" if number == 0 else "", line) for number, line in enumerate(quoted)]


def _step(report: dict) -> str:
    left = "" if report["left_s"] is None else f", {duration(report['left_s'])} left without saves and validation"
    return f"{report['step']:,} of {report['steps']:,} ({report['step'] / report['steps']:.1%}){left}"


def _loss(report: dict) -> list[tuple[str, str]]:
    loss, validation, rows = report["loss"], report["validation"], []
    if loss is not None:
        text = "none is finite" if loss["last"] is None else f"{loss['last']:.4f} nats/token at step {loss['step']:,}"
        if loss["num_steps_averaged"]:
            change = loss["mean"] - loss["mean_before"]
            num = _counted(loss["num_steps_averaged"], "step")
            text += f"; mean of the last {num} {loss['mean']:.4f}, {change:+.4f} to as many before"
        if loss["num_without"]:
            text += f"; {_counted(loss['num_without'], 'recent step')} without a finite one"
        rows.append(("loss", text))
    if validation is not None:
        text = "not finite" if validation["loss"] is None else f"{validation['loss']:.4f} nats/token"
        text += f" at step {validation['step']:,}"
        if None not in (validation["loss"], validation["loss_before"]):
            text += f", {validation['loss'] - validation['loss_before']:+.4f} to the one before"
        if validation["best_loss"] is not None:
            text += f"; best {validation['best_loss']:.4f} at step {validation['best_step']:,}"
        rows.append(("validation", text))
    return rows


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
    over = f"(medians of the last {_counted(speed['num_steps'], 'step')})"
    return [
        ("speed", f"{', '.join(parts)} {over}"),
        ("data wait", f"{speed['data_wait_share']:.2%} of step time, on the rank that reports"),
    ]


def _checkpoints(found: dict) -> list[tuple[str, str]]:
    every = f"one every {_counted(found['every_steps'], 'step')}"
    if not found["num"]:
        return [("checkpoints", f"none yet, {every}; {_counted(found['steps_since'], 'step')} would be lost")]
    resume = "a resume would find none"
    if found["resume_step"] is not None:
        resume = f"a resume starts from step {found['resume_step']:,}"
    since = f"{_counted(found['steps_since'], 'step')} since" if found["steps_since"] else "nothing since"
    rows = [("checkpoints", f"{found['num']:,}, {every}; {resume}, {since}")]
    for entry in found["last"]:
        whole = "whole" if entry["whole"] else f"NOT WHOLE: {', '.join(_LACKS[name] for name in entry['missing'])}"
        text = f"step {entry['step']:,}, {_bytes(entry['bytes'])}, {duration(entry['age_s'])} old, {whole}"
        rows.append(("", text))
    return rows


def _launches(launches: list[dict]) -> list[tuple[str, str]]:
    if not launches:
        return []
    told = [entry["steps_repeated"] for entry in launches[1:] if entry["steps_repeated"] is not None]
    text = f"{len(launches) - 1}"
    if len(launches) > 1:
        last = launches[-1]
        text += f", {_counted(sum(told), 'step')} repeated"
        text += f" as far as the logs tell ({len(told)} of {len(launches) - 1})" * (len(told) < len(launches) - 1)
        came = "" if last["resumed_from"] is None else f" from step {last['resumed_from']:,}"
        ranks = "" if last["num_ranks"] is None else f" on {_counted(last['num_ranks'], 'rank')}"
        text += f"; the last {last['started'].replace('T', ' ')}{came}{ranks}"
    return [("restarts", f"{text}; first started {launches[0]['started'].replace('T', ' ')} (its host's time)")]


def _trouble(report: dict) -> list[tuple[str, str]]:
    rows, bad, rejects = [], report["bad_steps"], report["rejects"]
    if bad is not None:
        last = bad["last"]
        text = f"{bad['num']:,}, the last step {last['step']}: {last['what']} not finite, loss {last['loss']}"
        rows.append(("bad steps", f"{text}, {last['num_samples']} samples (bad_steps.jsonl)"))
    if rejects["damaged"]:
        rows.append(("rejects", f"{_counted(rejects['damaged'], 'line')} of damaged samples (rejects.jsonl)"))
    if rejects["too_long"]:
        rows.append(("too long", f"{_counted(rejects['too_long'], 'sample')} (data/rejects.jsonl)"))
    return rows


def duration(time_s: float) -> str:
    """`45 s`, `12 min 5 s`, `3 h 12 min`, `2 d 4 h`: the two largest units; nothing below 0."""
    whole = max(0, round(time_s))
    minutes, seconds = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    counts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next((number for number, (count, _) in enumerate(counts) if count), len(counts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in counts[first : first + 2])


def _bytes(number: int) -> str:
    return f"{number / 1e9:.3f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _counted(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")
