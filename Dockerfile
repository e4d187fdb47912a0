# The course in a container, with torch's CPU build:
#   docker build -t flowrl-lab .
#   docker run --rm -p 127.0.0.1:8888:8888 -v flowrl-work:/course/notebooks flowrl-lab
# The volume keeps your notebooks; it is filled from the image when it is new.
FROM python:3.12-slim
RUN useradd --create-home student && mkdir /course && chown student /course
USER student
WORKDIR /course
COPY --chown=student . .
RUN python3 lab.py setup
EXPOSE 8888
# Inside a container 127.0.0.1 is the container itself, so it listens to all; the line
# above publishes it to your machine alone.
CMD [".venv/bin/python", "-m", "jupyterlab", "--ip=0.0.0.0", "--no-browser", \
     "--ServerApp.root_dir=/course/notebooks", \
     "--LabApp.default_url=/lab/tree/00_start_here.ipynb"]
