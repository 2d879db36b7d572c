"""What a test asks of the store, of MLflow and of Ray from a host that reaches them:

python hosts_tool.py make-bucket NAME
python hosts_tool.py upload FOLDER URI
python hosts_tool.py download URI FOLDER
python hosts_tool.py runs OUTPUT          the state of each MLflow run with this parameter `output`
    python hosts_tool.py wait-for-nodes ADDRESS...   until these alone are the nodes of the Ray cluster
"""

import sys


def make_bucket(name: str) -> None:
    import boto3

    boto3.client("s3").create_bucket(Bucket=name)


def copy(source: str, target: str) -> None:
    from pyarrow import fs

    from ajepa import storage

    (a, path), (b, place) = storage.resolve(source), storage.resolve(target)
    if isinstance(b, fs.LocalFileSystem):
        b.create_dir(place)
    fs.copy_files(path, place, a, b)


def list_files(uri: str) -> None:
    from ajepa import storage

    for name, _ in storage.list_files(uri):
        print(name)


def runs(output: str) -> None:
    import mlflow

    for run in mlflow.search_runs(
        search_all_experiments=True, filter_string=f"params.output = '{output}'", output_format="list"
    ):
        print(run.info.status)


def wait_for_nodes(*addresses: str) -> None:
    import json
    import os
    import time
    from urllib.request import Request, urlopen

    url = f"{os.environ['RAY_API_SERVER_ADDRESS']}/nodes?view=summary"
    asked = Request(url, headers={"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"})
    living: set[str] = set()
    while living != set(addresses):
        time.sleep(1)
        with urlopen(asked) as answer:
            nodes = json.load(answer)["data"]["summary"]
        living = {node["ip"] for node in nodes if node["raylet"]["state"] == "ALIVE"}


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    commands = {
        "make-bucket": make_bucket,
        "upload": copy,
        "download": copy,
        "list": list_files,
        "runs": runs,
        "wait-for-nodes": wait_for_nodes,
    }
    commands[command](*arguments)
