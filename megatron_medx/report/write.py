"""`medx report`: a run as one HTML file that opens without network, written whole or not at all.

Comes in: a run folder, on any host that sees it; nothing in it is changed but the page itself. Goes out: the path of
the page.
"""

import os
import time
from pathlib import Path

from megatron_medx.errors import ConfigError
from megatron_medx.report.page import render_page
from megatron_medx.report.record import read_record
from megatron_medx.run_folder.names import REPORT_FILE


def write_report(folder: Path, against: Path | None = None, out: Path | None = None) -> Path:
    """Write the page of a run.

    Args:
        folder: of the run.
        against: folder of a run that curves and settings stand beside.
        out: the page; None means `report.html` in the run folder. Its folder is made.

    Raises:
        ConfigError: a folder is no run, its files cannot be read, or the page cannot be written.
    """
    now_s = time.time()
    page = out or folder / REPORT_FILE
    run, parent = read_record(folder, now_s), None if against is None else read_record(against, now_s)
    text = render_page(run, parent, now_s)
    draft = page.with_name(f".{page.name}.{os.getpid()}.draft")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, page)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ConfigError(
            f"{page} cannot be written: {error.strerror}",
            "a file in a folder that you may write to",
            f"medx report {folder} --out FILE",
        ) from error
    return page
