//! What is written about the plan is about this plan.

#![allow(clippy::unwrap_used, missing_docs)]

use roostmq_load::plan::Plan;

#[test]
fn every_field_of_a_plan_is_in_its_document() {
    let document = include_str!("../../docs/formats/bench.md");
    let table = document.split("\n## ").find(|part| part.starts_with("The plan")).unwrap();
    let rows: Vec<&str> = table.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next()).collect();
    let named: Vec<&str> = rows.iter().flat_map(|row| row.trim_end_matches('`').split("`, `")).collect();
    let plan = serde_json::to_value(Plan::default()).unwrap();
    for field in plan.as_object().unwrap().keys() {
        assert!(named.contains(&field.as_str()), "{field} is not written about");
    }
    assert_eq!(named.len(), plan.as_object().unwrap().len());
}
