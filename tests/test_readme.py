"""What the README prints runs as printed."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

from ray import serve
from serving import running_serve

from code_ray.data import DataSet

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_the_first_example_runs_against_the_shipped_plan(fashion: DataSet) -> None:
    from deployments import app

    (program, *_) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    printed_url = "http://127.0.0.1:8000"
    assert printed_url in program
    with running_serve(num_cpus=2) as url:
        serve.run(app)
        with redirect_stdout(io.StringIO()) as printed:
            exec(compile(program.replace(printed_url, url), str(README), "exec"), {})
    # Ray may repeat a line of its workers here, their name in brackets before it.
    *lines, last = [line for line in printed.getvalue().splitlines() if not re.match(r"(\x1b\[\d+m)?\(", line)]
    assert len(lines) == 10
    assert all(re.fullmatch(r".+ truth: .+", line) for line in lines)
    right = sum(label.strip() == truth for label, truth in (line.split(" truth: ") for line in lines))
    assert right >= 7
    assert last.startswith("path taken: ")
