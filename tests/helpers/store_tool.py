"""What a test asks of the store and of MLflow from a host that reaches them:

python store_tool.py make-bucket NAME
python store_tool.py upload FOLDER URI
python store_tool.py download URI FOLDER
python store_tool.py runs OUTPUT          the state of each MLflow run with this parameter `output`
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


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {"make-bucket": make_bucket, "upload": copy, "download": copy, "runs": runs}[command](*arguments)
