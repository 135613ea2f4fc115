"""Name the versions of the log's tables, and the SQL that leads from each to the next one. `tables` executes it."""

SCHEMA = 5  # the version, stored in SQLite's user_version, or in PostgreSQL as a comment on the table
BOTH = {"predictions", "feedback"}
KNOWN = {0: set(), 1: {"predictions"}, 2: BOTH, 3: BOTH, 4: BOTH}  # the tables that each older version has at least
ALWAYS = {"row", "time", "id", "version", "latency", "detections", "status"}  # columns of every version
STEPS = {  # from a version to the next one, after missing tables have been created
    1: ["ALTER TABLE predictions ADD COLUMN shadow BOOLEAN DEFAULT 0"],
    2: ["ALTER TABLE predictions ADD COLUMN noise FLOAT"],
    3: [
        "CREATE INDEX IF NOT EXISTS ix_feedback_time ON feedback (time)",
        "DROP INDEX ix_feedback_id",
        'CREATE INDEX ix_feedback_id ON feedback (id, "row")',
        "ALTER TABLE predictions ADD COLUMN said BIGINT",
        'UPDATE predictions SET said = (SELECT max(f."row") FROM feedback AS f WHERE f.id = predictions.id) '
        "WHERE id IN (SELECT id FROM feedback)",
    ],
    4: ["ALTER TABLE predictions ADD COLUMN person VARCHAR"],
}
FOUND = {  # the version and the tables' names, in one statement so that they are consistent
    "sqlite": """SELECT user_version, (SELECT group_concat(name) FROM sqlite_master WHERE type = 'table')
        FROM pragma_user_version""",
    "postgresql": """SELECT
        coalesce(substring(obj_description(to_regclass('predictions'), 'pg_class') from '^labsupport ([0-9]+)$'), '0'),
        concat_ws(',', to_regclass('predictions')::text, to_regclass('feedback')::text, to_regclass('decisions')::text)""",
}
MARK = {"sqlite": "PRAGMA user_version={}", "postgresql": "COMMENT ON TABLE predictions IS 'labsupport {}'"}
