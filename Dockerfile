# All commands on a CPU:       docker build -t pointrend .
# On NVIDIA GPUs, CUDA 13.0:   docker build -t pointrend --build-arg DEVICE=cu130 .
FROM python:3.13-slim-bookworm
ARG DEVICE=cpu
# OpenCV opens windows with GL and GLib; Triton compiles with gcc on GPUs.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/* && useradd --create-home pointrend
WORKDIR /opt/pointrend
COPY . .
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/$DEVICE PIP_NO_CACHE_DIR=1
RUN pip install --upgrade --constraint constraints.txt pip setuptools wheel \
    && pip install --no-build-isolation --constraint constraints.txt '.[hub,onnx,openvino,serving]' \
    && pointrend install-detectron2 --constraint constraints.txt
USER pointrend
ENTRYPOINT ["pointrend"]
