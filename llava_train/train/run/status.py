"""How a run stands, from its files alone: nothing is loaded, no process is asked."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from llava_train.shared.errors import RunError
from llava_train.train.checkpoint.run_folder import FINISHED, read_metrics, whole_checkpoints
from llava_train.train.run.job_segments import Segment, read_segments

RECENT = 50  # steps whose mean time gives the hours that are left
Line = dict[str, Any]


def status(run: Path) -> dict[str, Any]:
    """What JSON can hold: the stage that trains or trained last, its checkpoint, and the run's segments.

    Raises RunError where the folder holds no run yet.
    """
    segments = read_segments(run)
    configs = sorted(run.glob("*/config.yaml"))
    if not configs and not segments:
        raise RunError(f"{run} holds no STAGE/config.yaml\n    -> name a run's folder; its first stage may be loading")
    names = list(yaml.safe_load(configs[0].read_text(encoding="utf-8"))["stages"]) if configs else []
    begun = [name for name in names if (run / name / "config.yaml").exists()]
    lines = {name: read_metrics(run / name) for name in begun}
    num_finished = sum((run / name / FINISHED).exists() for name in names)
    return {
        "run": str(run),
        "state": _state(segments, bool(names) and num_finished == len(names)),
        "stages": len(names),
        "stages_finished": num_finished,
        **(_stage(run / begun[-1], lines[begun[-1]]) if begun else {}),
        "checkpoint": _checkpoint(run, begun),
        "restarts": max(0, len(segments) - 1),
        "segments": [
            _segment(segment, [line for of_stage in lines.values() for line in of_stage]) for segment in segments
        ],
    }


def _state(segments: list[Segment], is_finished: bool) -> str:
    if is_finished:
        return "finished"
    return segments[-1].outcome if segments else "not under SLURM"


def _stage(folder: Path, lines: list[Line]) -> dict[str, Any]:
    told: dict[str, Any] = {"stage": folder.name, "step": 0, "num_steps": None, "eta_seconds": None, "loss": None}
    if lines:
        last, recent = lines[-1], lines[-RECENT:]
        seconds = sum(line["seconds"] + line["stalled_seconds"] for line in recent) / len(recent)
        told |= {"step": last["step"], "num_steps": last["num_steps"], "loss": last["loss"]}
        told |= {"eta_seconds": round(seconds * (last["num_steps"] - last["step"]), 1)}
        told |= {"tokens_per_second": _rate(recent), "seconds_since_step": round(time.time() - last["time"], 1)}
    return told


def _checkpoint(run: Path, stages: list[str]) -> dict[str, Any] | None:
    newest = next((found[0] for name in reversed(stages) if (found := whole_checkpoints(run / name))), None)
    if newest is None:
        return None
    return {"folder": str(newest), "age_seconds": round(time.time() - newest.stat().st_mtime, 1)}


def _segment(segment: Segment, lines: list[Line]) -> dict[str, Any]:
    """Steps that a later segment repeated count there."""
    end = segment.ended or time.time()
    mine = [line for line in lines if segment.began <= line["time"] <= end]
    return {
        "segment": segment.number,
        "job": segment.job,
        "nodes": segment.nodes,
        "outcome": segment.outcome,
        "reason": segment.reason,
        "seconds": round(end - segment.began, 1),
        "steps": len(mine),
        "tokens_per_second": _rate(mine),
    }


def _rate(lines: list[Line]) -> float | None:
    """Tokens of these steps by their time, stalls included."""
    seconds = sum(line["seconds"] + line["stalled_seconds"] for line in lines)
    return round(sum(line["num_tokens"] for line in lines) / seconds, 1) if seconds else None


def status_text(told: dict[str, Any]) -> list[str]:
    """Lines for people."""
    lines = [f"{told['run']}: {told['state']}, {told['stages_finished']} of {told['stages']} stages finished"]
    if told.get("num_steps"):
        left = f"{timedelta(seconds=round(told['eta_seconds']))} left"
        lines.append(
            f"stage {told['stage']}: step {told['step']:,} of {told['num_steps']:,}, {left}, loss {told['loss']:.4f}, "
            f"{told['tokens_per_second']:,.0f} tokens/s, last step {told['seconds_since_step']:,.0f} s ago"
        )
    saved = told["checkpoint"]
    lines.append(
        f"checkpoint: {saved['folder']}, {saved['age_seconds']:,.0f} s old" if saved else "checkpoint: none yet"
    )
    for part in told["segments"]:
        rate = f", {part['tokens_per_second']:,.0f} tokens/s" if part["tokens_per_second"] else ""
        reason = f": {part['reason']}" if part["reason"] else ""
        spent = f"{part['steps']:,} steps in {part['seconds']:,.0f} s{rate}"
        lines.append(
            f"segment {part['segment']}, job {part['job']} on {part['nodes']}: {spent}; {part['outcome']}{reason}"
        )
    return lines
