"""Reads the files of a folder as the package does: a JSON line for each, with outcome, CPU time and peak memory."""

import json
import re
import sys
import time
import warnings
from pathlib import Path

from glip_hf.data.records import ImageRef
from glip_hf.data.shards import read_pairs
from glip_hf.image_processing_pil_glip import read_pixels

warnings.simplefilter("ignore")
for path in sorted(Path(sys.argv[1]).iterdir()):
    begin = time.process_time()
    try:
        if path.suffix == ".tar":
            outcome = f"{sum(1 for _ in read_pairs(str(path)))} pairs"
        else:
            outcome = str(tuple(read_pixels(ImageRef(str(path), size=(64, 48)).load()).shape))
    except (OSError, ValueError) as error:
        outcome = f"refused: {error}"
    except Exception as error:
        outcome = f"FAILED: {type(error).__name__}: {error}"
    # Not `ru_maxrss`: it begins with that of the process that started this one.
    peak = 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
    seconds = time.process_time() - begin
    print(json.dumps({"file": path.name, "outcome": outcome, "seconds": seconds, "peak": peak}), flush=True)
