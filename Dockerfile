# The platform's base image, which brings CUDA 12.6 (its T4 needs no newer) and torch
ARG BASE_IMAGE=pytorch/pytorch:2.13.0-cuda12.6-cudnn9-runtime
FROM ${BASE_IMAGE} AS program

RUN groupadd --gid 10001 petclick && useradd --uid 10001 --gid 10001 --no-create-home petclick

# pip refuses to touch the base's environment, so a venv lies over it. The base's torch must stay: where it is not
# the one that requirements.txt asks for, the constraint makes the build fail instead of bringing a second one.
COPY --chmod=755 pyproject.toml requirements.txt LICENSE /opt/app/
COPY --chmod=755 petclick/__init__.py /opt/app/petclick/
RUN python -m venv --system-site-packages /opt/venv \
 && /opt/venv/bin/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
    > /tmp/base.txt \
 && /opt/venv/bin/pip install --no-cache-dir --constraint /tmp/base.txt --editable '/opt/app[cuda12]' \
 && rm -r /tmp/base.txt /opt/app/*.egg-info

# Copied once, with the modes that any user can read: a later chmod or chown would store the weights twice.
COPY --chmod=755 resources /opt/app/resources
COPY --chmod=755 inference.py /opt/app/
COPY --chmod=755 petclick /opt/app/petclick
RUN /opt/venv/bin/python -m compileall -q /opt/app/petclick

# HOME and LOGNAME: libraries look for a cache folder and a user name, and the user may be any number. MALLOC_: keep
# freed memory instead of faulting it in again for every layer of the network.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    LOGNAME=petclick \
    MPLCONFIGDIR=/tmp/matplotlib \
    MALLOC_MMAP_THRESHOLD_=1073741824 \
    MALLOC_TRIM_THRESHOLD_=4294967296 \
    MALLOC_TOP_PAD_=268435456 \
    PETCLICK_BAD_CLICKS=warn \
    PETCLICK_TIME_LIMIT=840
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["python", "/opt/app/inference.py"]

# The platform's two ways to call it, `--target`: a server for many jobs, told by its label, or one job a run.
FROM program AS invoke
LABEL org.grand-challenge.api-method=invoke
EXPOSE 4743
CMD ["--serve"]

FROM program AS exec
