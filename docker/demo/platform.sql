-- Sample rows for the tables of Heimdall: a job, the three datasets that seed.sh puts objects for, and a model.
insert into heimdall.training_jobs (id, job_name, job_type, status, config, total_epochs)
values ('00000000-0000-4000-8000-00000000000a', 'generate rooftop recordings', 'synthetic_generation', 'completed', '{}', 1);

insert into heimdall.synthetic_datasets (id, name, num_samples, config, dataset_type, created_by_job_id)
values
    -- large, and nothing uses it
    ('00000000-0000-4000-8000-000000000001', 'rooftop-2026-05', 400, '{}', 'iq_raw', '00000000-0000-4000-8000-00000000000a'),
    -- an active model uses it
    ('00000000-0000-4000-8000-000000000002', 'harbour-2026-06', 100, '{}', 'iq_raw', null),
    -- stays where it is
    ('00000000-0000-4000-8000-000000000003', 'rooftop-2026-06', 60, '{}', 'iq_raw', '00000000-0000-4000-8000-00000000000a');

insert into heimdall.synthetic_iq_samples (
    timestamp, dataset_id, sample_idx, tx_lat, tx_lon, tx_alt, tx_power_dbm, frequency_hz,
    receivers_metadata, num_receivers, iq_metadata, iq_storage_paths
)
select now(), d.id, n, 45, 7, 200, 30, 145000000, '[]', 5, '{}',
    jsonb_build_object('RX_000', 'synthetic/' || d.id || '/' || n || '/RX_000.npy')
from heimdall.synthetic_datasets d
cross join lateral generate_series(0, d.num_samples - 1) as n;

insert into heimdall.models (model_name, is_active, synthetic_dataset_id, hyperparameters)
values (
    'localizer-v3', true, '00000000-0000-4000-8000-000000000002',
    '{"dataset_ids": ["00000000-0000-4000-8000-000000000002"]}'
);
