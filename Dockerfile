# The platform's base image, which brings CUDA 12.6 (its T4 needs no newer) and torch
ARG BASE_IMAGE=pytorch/pytorch:2.13.0-cuda12.6-cudnn9-runtime
FROM ${BASE_IMAGE} AS program

RUN groupadd --gid 10001 petclick && useradd --uid 10001 --gid 10001 --no-create-home petclick

# pip refuses to touch the base's environment, so a venv lies over it: with what requirements.lock lists and nothing
# else, less the packages' own tests and sources. The base's torch must be the one that requirements.txt asks for.
COPY --chmod=755 LICENSE requirements.lock requirements.txt /opt/app/
RUN python -m venv --system-site-packages --without-pip /opt/venv \
 && grep -qx "torch==$(python -c 'import importlib.metadata as m; print(m.version("torch").split("+")[0])')" \
    /opt/app/requirements.txt \
 && python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --require-hashes --no-compile \
    --requirement /opt/app/requirements.lock \
 && find /opt/venv -depth -type d \( -name tests -o -name test \) -exec rm -r {} + \
 && find /opt/venv -type f -regex '.*\.\(a\|c\|cpp\|pxd\|pyx\)' -delete \
 && /opt/venv/bin/python -m compileall -q /opt/venv

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

# What is in the image, as CycloneDX: `--target bill --output DIR` writes sbom.json there.
FROM program AS inventory
USER 0
RUN python -m venv /opt/inventory \
 && /opt/inventory/bin/pip install --no-cache-dir cyclonedx-bom==7.5.0 \
 && /opt/inventory/bin/cyclonedx-py environment --output-format JSON --output-file /sbom.json /opt/venv/bin/python
USER 10001:10001
FROM scratch AS bill
COPY --from=inventory /sbom.json /

# The platform's two ways to call it, `--target`: a server for many jobs, told by its label, or one job a run.
FROM program AS invoke
LABEL org.grand-challenge.api-method=invoke
EXPOSE 4743
CMD ["--serve"]

FROM program AS exec
