"""Two runs of exp_phase2 with the same seed: lossless, and equal but for their seconds.

    python3 .ci/check_summaries.py RUN_1/summary.json RUN_2/summary.json
"""

import json
import pathlib
import sys


def differences(one: object, two: object, at: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(two, dict):
        keys = sorted(one.keys() | two.keys())
        return [line for key in keys for line in differences(one.get(key), two.get(key), f"{at}.{key}".lstrip("."))]
    return [] if json.dumps(one) == json.dumps(two) else [f"{at}: {one} and {two}"]


def main() -> None:
    runs = [json.loads(pathlib.Path(path).read_text()) for path in sys.argv[1:3]]
    problems = [f"{path}: lossless.bit_equal is not true" for path, run in zip(sys.argv[1:3], runs) if run["lossless"]["bit_equal"] is not True]
    for run in runs:
        if not run.pop("seconds", None):
            problems.append("summary.json has no `seconds`")
    problems += differences(*runs)
    if problems:
        sys.exit("error: the same seed must give the same figures, without loss; these do not:\n" + "\n".join(problems))
    print(f"two runs: bit-equal to the dense model, {len(json.dumps(runs[0]))} bytes of figures the same")


if __name__ == "__main__":
    main()
