# NVIDIA's TensorRT image with `defensemble build-engine`, for the service `engines` of docker-compose.yml. It has not been built yet: the
# development machines have neither a Docker engine nor NVIDIA's image.
ARG NGC_TAG
FROM nvcr.io/nvidia/tensorrt:${NGC_TAG}-py3
COPY . /opt/defensemble
# The image sets PIP_CONSTRAINT, and its Python is marked as managed by apt.
RUN PIP_CONSTRAINT= python3 -m pip install --no-cache-dir --break-system-packages --constraint /opt/defensemble/constraints.txt \
      '/opt/defensemble[export]' polygraphy \
# A new named volume inherits owner and mode from this folder: builder and Triton may be different users.
 && install -d -m 1777 /var/cache/defensemble
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 ORT_DISABLE_TELEMETRY=1
USER 1000:1000
