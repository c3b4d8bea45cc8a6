-- The schema of the Heimdall platform as it stands in production, as far as deleting a dataset or a job touches it:
-- every column, default, check, unique and foreign key of these tables, and also what is missing there:
--   * synthetic_datasets has no deleted_at and no owner;
--   * measurement_features.dataset_id has no foreign key and no index;
--   * the dataset ids in training_jobs.config and models.hyperparameters are json, with no foreign key.
-- Not kept: TimescaleDB (the tables keyed by timestamp are hypertables there), uuid-ossp (gen_random_uuid() instead),
-- views, comments, and tables that no dataset, job or model refers to.
create schema heimdall;
set search_path to heimdall;

create type dataset_type_enum as enum ('feature_based', 'iq_raw');

create table recording_sessions (
    id uuid primary key default gen_random_uuid(),
    known_source_id uuid,
    session_name varchar(255) not null,
    session_start timestamptz not null,
    session_end timestamptz,
    duration_seconds float,
    celery_task_id varchar(255),
    status varchar(50) default 'pending',
    approval_status varchar(50) default 'pending',
    uncertainty_meters float,
    notes text,
    created_at timestamptz default now(),
    updated_at timestamptz default now()
);

create table training_jobs (
    id uuid primary key default gen_random_uuid(),
    job_name varchar(255) not null,
    celery_task_id varchar(255) unique,
    job_type varchar(50) default 'training' check (
        job_type in ('training', 'terrain_download', 'synthetic_generation', 'model_export', 'model_evaluation')
    ),
    status varchar(50) default 'pending' constraint valid_status check (
        status in ('pending', 'queued', 'running', 'paused', 'completed', 'failed', 'cancelled')
    ),
    created_at timestamptz default now(),
    started_at timestamptz,
    completed_at timestamptz,
    config jsonb not null,
    current_epoch integer default 0,
    total_epochs integer not null,
    progress_percent float default 0.0,
    current_progress integer default 0,
    total_progress integer default 0,
    progress_message text,
    train_loss float,
    val_loss float,
    train_accuracy float,
    val_accuracy float,
    learning_rate float,
    best_epoch integer,
    best_val_loss float,
    checkpoint_path varchar(512),
    pause_checkpoint_path varchar(512),
    onnx_model_path varchar(512),
    mlflow_run_id varchar(255),
    error_message text,
    dataset_size integer,
    train_samples integer,
    val_samples integer,
    model_architecture varchar(100),
    parent_job_id uuid constraint fk_parent_job references training_jobs (id) on delete set null,
    dataset_id uuid, -- references synthetic_datasets, below: the two refer to each other
    updated_at timestamptz default now()
);
create index idx_training_jobs_status on training_jobs (status, created_at desc);
create index idx_training_jobs_type on training_jobs (job_type, created_at desc);
create index idx_training_jobs_parent on training_jobs (parent_job_id);
create index idx_training_jobs_dataset_id on training_jobs (dataset_id);

create table training_metrics (
    timestamp timestamptz not null,
    id uuid not null default gen_random_uuid(),
    training_job_id uuid references training_jobs (id) on delete cascade,
    epoch integer not null,
    batch integer,
    train_loss float,
    val_loss float,
    train_accuracy float,
    val_accuracy float,
    learning_rate float,
    gradient_norm float,
    phase varchar(20),
    primary key (timestamp, id)
);

create table synthetic_datasets (
    id uuid primary key default gen_random_uuid(),
    name varchar(100) not null unique,
    description text,
    num_samples integer not null,
    train_count integer,
    val_count integer,
    test_count integer,
    config jsonb not null,
    quality_metrics jsonb,
    storage_table varchar(100) default 'synthetic_training_samples',
    dataset_type dataset_type_enum not null default 'feature_based',
    storage_size_bytes bigint,
    health_status varchar(20) default 'unknown' constraint check_health_status check (
        health_status in ('unknown', 'healthy', 'warning', 'critical')
    ),
    last_validated_at timestamptz,
    validation_issues jsonb,
    created_at timestamptz default now(),
    updated_at timestamptz default now(),
    created_by_job_id uuid references training_jobs (id) on delete set null
);
create index idx_synthetic_datasets_created on synthetic_datasets (created_at desc);
create index idx_synthetic_datasets_type on synthetic_datasets (dataset_type, created_at desc);

alter table training_jobs
    add constraint training_jobs_dataset_id_fkey
    foreign key (dataset_id) references synthetic_datasets (id) on delete set null;

create table synthetic_training_samples (
    timestamp timestamptz not null,
    id uuid not null default gen_random_uuid(),
    dataset_id uuid not null references synthetic_datasets (id) on delete cascade,
    tx_lat float not null,
    tx_lon float not null,
    tx_power_dbm float not null,
    frequency_hz bigint not null,
    receivers jsonb not null,
    gdop float,
    num_receivers integer,
    split varchar(10) not null check (split in ('train', 'val', 'test')),
    created_at timestamptz default now(),
    primary key (timestamp, id)
);
create index idx_synthetic_samples_dataset on synthetic_training_samples (dataset_id, timestamp desc);
create index idx_synthetic_samples_split on synthetic_training_samples (dataset_id, split);

create table synthetic_iq_samples (
    timestamp timestamptz not null,
    id uuid not null default gen_random_uuid(),
    dataset_id uuid not null references synthetic_datasets (id) on delete cascade,
    sample_idx integer not null,
    tx_lat float not null,
    tx_lon float not null,
    tx_alt float not null,
    tx_power_dbm float not null,
    frequency_hz bigint not null,
    receivers_metadata jsonb not null,
    num_receivers integer not null,
    gdop float,
    mean_snr_db float,
    overall_confidence float,
    iq_metadata jsonb not null,
    iq_storage_paths jsonb not null,
    created_at timestamptz default now(),
    primary key (timestamp, id),
    unique (dataset_id, sample_idx)
);

create table measurement_features (
    recording_session_id uuid primary key, -- a random one for a synthetic sample
    dataset_id uuid,
    timestamp timestamptz not null,
    receiver_features jsonb[] not null,
    tx_latitude double precision,
    tx_longitude double precision,
    tx_altitude_m double precision,
    tx_power_dbm double precision,
    tx_known boolean default false,
    extraction_metadata jsonb not null,
    overall_confidence float not null check (overall_confidence >= 0 and overall_confidence <= 1),
    mean_snr_db float,
    num_receivers_detected integer check (num_receivers_detected >= 0 and num_receivers_detected <= 15),
    num_receivers_in_sample integer,
    gdop float,
    extraction_failed boolean default false,
    error_message text,
    created_at timestamptz default now()
);
create index idx_measurement_features_timestamp on measurement_features (timestamp desc);

create table models (
    id uuid primary key default gen_random_uuid(),
    model_name varchar(255) not null,
    model_type varchar(100),
    training_dataset_id uuid,
    mlflow_run_id varchar(255),
    mlflow_experiment_id integer,
    onnx_model_location varchar(512),
    pytorch_model_location varchar(512),
    accuracy_meters float,
    accuracy_sigma_meters float,
    loss_value float,
    epoch integer,
    is_active boolean default false,
    is_production boolean default false,
    version integer default 1,
    hyperparameters jsonb,
    training_metrics jsonb,
    test_metrics jsonb,
    synthetic_dataset_id uuid references synthetic_datasets (id) on delete set null,
    trained_by_job_id uuid references training_jobs (id) on delete set null,
    parent_model_id uuid references models (id) on delete set null,
    owner_id varchar(255),
    description text,
    created_at timestamptz default now(),
    updated_at timestamptz default now(),
    constraint models_name_version_unique unique (model_name, version)
);
create index idx_models_synthetic_dataset on models (synthetic_dataset_id);
create index idx_models_trained_by_job on models (trained_by_job_id);
create index idx_models_parent_model on models (parent_model_id);
create index idx_models_active on models (is_active) where is_active;

create table inference_requests (
    timestamp timestamptz not null,
    id uuid not null default gen_random_uuid(),
    model_id uuid not null references models (id) on delete cascade,
    frequency_hz bigint,
    position_lat float,
    position_lon float,
    uncertainty_m float,
    cache_hit boolean default false,
    processing_time_ms float,
    created_at timestamptz default now(),
    primary key (timestamp, id)
);
create index idx_inference_requests_model on inference_requests (model_id, timestamp desc);

create table model_shares (
    id uuid primary key default gen_random_uuid(),
    model_id uuid not null references models (id) on delete cascade,
    user_id varchar(255) not null,
    permission varchar(20) not null check (permission in ('read', 'edit')),
    shared_by varchar(255) not null,
    shared_at timestamptz default now(),
    unique (model_id, user_id)
);

create table model_evaluations (
    id uuid primary key default gen_random_uuid(),
    model_id uuid not null references models (id) on delete cascade,
    dataset_id uuid references synthetic_datasets (id) on delete set null,
    metrics jsonb not null,
    visualization_paths jsonb,
    evaluated_at timestamptz default now(),
    evaluated_by_job_id uuid references training_jobs (id) on delete set null
);
create index idx_model_evaluations_model on model_evaluations (model_id, evaluated_at desc);
create index idx_model_evaluations_dataset on model_evaluations (dataset_id);

reset search_path;
