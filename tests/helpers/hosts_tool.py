"""What a test asks of the store, of MLflow and of Ray from a host that reaches them:

python hosts_tool.py make-bucket NAME
python hosts_tool.py upload FOLDER URI
python hosts_tool.py download URI FOLDER
python hosts_tool.py runs OUTPUT          the state of each MLflow run with this parameter `output`
    python hosts_tool.py living               the addresses of the nodes of the Ray cluster
"""

import sys


def make_bucket(name: str) -> None:
    import boto3

    boto3.client("s3").create_bucket(Bucket=name)


def copy(source: str, target: str) -> None:
    from pyarrow import fs

    from ajepa import storage

    (a, path), (b, place) = storage.resolve(source), storage.resolve(target)
    fs.copy_files(path, place, a, b)


def runs(output: str) -> None:
    import mlflow

    for run in mlflow.search_runs(
        search_all_experiments=True, filter_string=f"params.output = '{output}'", output_format="list"
    ):
        print(run.info.status)


def living() -> None:
    import json
    import os
    from urllib.request import Request, urlopen

    token = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    with urlopen(Request(f"{os.environ['RAY_API_SERVER_ADDRESS']}/nodes?view=summary", headers=token)) as answer:
        nodes = json.load(answer)["data"]["summary"]
    print(*(node["ip"] for node in nodes if node["raylet"]["state"] == "ALIVE"))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {"make-bucket": make_bucket, "upload": copy, "download": copy, "runs": runs, "living": living}[command](*arguments)
