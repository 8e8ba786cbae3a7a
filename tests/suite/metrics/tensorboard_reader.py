"""What TensorBoard's own reader finds in the folder argv[1]: for every line on standard input a line of JSON, {tag: [[step, value], ...]}."""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EVERYTHING = 0
reader = EventAccumulator(sys.argv[1], size_guidance={"scalars": EVERYTHING})
print("ready", flush=True)
for _ in sys.stdin:
    reader.Reload()
    found = {tag: [[event.step, event.value] for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    print(json.dumps(found), flush=True)
