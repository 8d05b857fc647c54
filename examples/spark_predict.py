"""Segment images with Spark: spark_predict.py model_final.pth images.parquet instances.parquet.

The input has a column `uri`: paths of images that all workers of the cluster can read. The output
has a row for each: its instances as COCO's results in JSON; or why it could not be read.
"""

import json
import sys

import pandas as pd
import torch

from point_rend import Predictor
from point_rend.evaluation.postprocessing import coco_records

SCHEMA = "uri string, instances string, error string"


def segment(predictor, batches):
    """Map data frames with a column `uri` to data frames of SCHEMA, as `mapInPandas` asks."""
    torch.set_num_threads(1)  # Spark runs one task per core
    for batch in batches:
        rows = []
        for uri in batch["uri"]:
            instances, error = None, None
            try:
                instances = json.dumps(coco_records(predictor(uri)["instances"].to("cpu"), uri))
            except (OSError, ValueError) as reason:
                error = str(reason)
            rows.append((uri, instances, error))
        yield pd.DataFrame(rows, columns=["uri", "instances", "error"])


def main(checkpoint, images, output):
    """Run the job of `spark-submit`."""
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.getOrCreate()
    predictor = spark.sparkContext.broadcast(Predictor.from_checkpoint(checkpoint))
    found = spark.read.parquet(images).mapInPandas(lambda x: segment(predictor.value, x), SCHEMA)
    found.write.parquet(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
