-- Schema version 1 with one tenant, as it was first written. Never changed.
BEGIN TRANSACTION;
CREATE TABLE api_tokens (
	id VARCHAR(32) NOT NULL, 
	secret_hash BLOB NOT NULL, 
	tenant VARCHAR(256) NOT NULL, 
	name VARCHAR(128) NOT NULL, 
	roles TEXT NOT NULL, 
	created_at FLOAT NOT NULL, 
	expires_at FLOAT NOT NULL, 
	last_used_at FLOAT NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(tenant) REFERENCES tenants (path)
);
CREATE TABLE boots (
	id INTEGER NOT NULL, 
	generation BIGINT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE effects (
	principal VARCHAR(128) NOT NULL, 
	request_id VARCHAR(64) NOT NULL, 
	verb VARCHAR(64) NOT NULL, 
	digest BLOB NOT NULL, 
	answer BLOB NOT NULL, 
	at FLOAT NOT NULL, 
	PRIMARY KEY (principal, request_id)
);
CREATE TABLE images (
	id VARCHAR(32) NOT NULL, 
	context_id VARCHAR(32) NOT NULL, 
	model VARCHAR(128) NOT NULL, 
	owner VARCHAR(128) NOT NULL, 
	tenant VARCHAR(256) NOT NULL, 
	num_tokens BIGINT NOT NULL, 
	num_pages BIGINT NOT NULL, 
	size_bytes BIGINT NOT NULL, 
	created_at FLOAT NOT NULL, 
	name VARCHAR(256) NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(tenant) REFERENCES tenants (path)
);
CREATE TABLE models (
	name VARCHAR(128) NOT NULL, 
	path TEXT NOT NULL, 
	max_positions BIGINT NOT NULL, 
	quant VARCHAR(64) NOT NULL, 
	weights_hash VARCHAR(128) NOT NULL, 
	fingerprint VARCHAR(128) NOT NULL, 
	file_stamp TEXT NOT NULL, 
	want_loaded BOOLEAN NOT NULL, 
	registered_by VARCHAR(128) NOT NULL, 
	PRIMARY KEY (name)
);
CREATE TABLE principals (
	name VARCHAR(128) NOT NULL, 
	tenant VARCHAR(256) NOT NULL, 
	roles TEXT NOT NULL, 
	is_local BOOLEAN NOT NULL, 
	PRIMARY KEY (name), 
	FOREIGN KEY(tenant) REFERENCES tenants (path)
);
CREATE TABLE schema_versions (
	version INTEGER NOT NULL, 
	applied_at FLOAT NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "schema_versions" VALUES(1,7.0);
CREATE TABLE tenants (
	path VARCHAR(256) NOT NULL, 
	weight INTEGER NOT NULL, 
	limits TEXT NOT NULL, 
	created_at FLOAT NOT NULL, 
	secret BLOB NOT NULL, 
	PRIMARY KEY (path)
);
INSERT INTO "tenants" VALUES('lab/ann',2,'{"device_bytes":0,"host_bytes":0,"max_contexts":5,"max_running":0,"max_queued":0,"requests_per_minute":0,"tokens_per_minute":0,"image_bytes":0}',1.0,X'7373737373737373737373737373737373737373737373737373737373737373');
CREATE TABLE usage (
	tenant VARCHAR(256) NOT NULL, 
	input_tokens BIGINT NOT NULL, 
	output_tokens BIGINT NOT NULL, 
	service BIGINT NOT NULL, 
	PRIMARY KEY (tenant)
);
CREATE INDEX ix_effects_at ON effects (at);
CREATE INDEX ix_images_tenant ON images (tenant);
CREATE INDEX ix_images_context_id ON images (context_id);
COMMIT;
