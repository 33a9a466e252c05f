# NVIDIA's TensorRT with `defensemble build-engine` in it: what docker-compose.yml's service `engines` runs. Not built here: there is no Docker
# engine, nor NVIDIA's image, on the machines that this was written on.
ARG NGC_TAG
FROM nvcr.io/nvidia/tensorrt:${NGC_TAG}-py3
COPY . /opt/defensemble
# The image has a list of pins of its own (PIP_CONSTRAINT), and Ubuntu's mark of a Python that apt manages.
RUN PIP_CONSTRAINT= python3 -m pip install --no-cache-dir --break-system-packages --constraint /opt/defensemble/constraints.txt \
      '/opt/defensemble[export]' polygraphy \
# A new named volume takes its owner and rights from here: builder and Triton may be different users.
 && install -d -m 1777 /var/cache/defensemble
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 ORT_DISABLE_TELEMETRY=1
USER 1000:1000
