#!/usr/bin/env bash
# Make the roles and accounts of one project, and bind them: apply.sh PROJECT BUCKET
# A second run changes nothing. The robot's key is not made here: prefer workload identity federation, or
#   gcloud iam service-accounts keys create brain.json --iam-account=brain-robot@PROJECT.iam.gserviceaccount.com
set -euo pipefail
project=${1:?PROJECT}
bucket=${2:?BUCKET}
cd "$(dirname "$0")"

role() { # name file
  gcloud iam roles describe "$1" --project="$project" >/dev/null 2>&1 &&
    gcloud iam roles update "$1" --project="$project" --file="$2" --quiet ||
    gcloud iam roles create "$1" --project="$project" --file="$2" --quiet
}
account() { # name
  gcloud iam service-accounts describe "$1@$project.iam.gserviceaccount.com" --project="$project" >/dev/null 2>&1 ||
    gcloud iam service-accounts create "$1" --project="$project"
}

role brainRobot robot.yaml
role brainLauncher launcher.yaml
role brainJob job.yaml
role brainSlice self-delete.yaml
account brain-robot
account brain-job
robot=serviceAccount:brain-robot@$project.iam.gserviceaccount.com
job=serviceAccount:brain-job@$project.iam.gserviceaccount.com

gcloud storage buckets add-iam-policy-binding "gs://$bucket" --member="$robot" --role="projects/$project/roles/brainRobot"
gcloud storage buckets add-iam-policy-binding "gs://$bucket" --member="$job" --role="projects/$project/roles/brainJob"
gcloud projects add-iam-policy-binding "$project" --member="$robot" --role="projects/$project/roles/brainLauncher" --condition=None
gcloud projects add-iam-policy-binding "$project" --member="$job" --role="projects/$project/roles/brainSlice" --condition=None
gcloud iam service-accounts add-iam-policy-binding "brain-job@$project.iam.gserviceaccount.com" --project="$project" \
  --member="$robot" --role=roles/iam.serviceAccountUser
