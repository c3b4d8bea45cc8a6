//! `reprieve trash`: shows the plan; with `--execute` carries it out.

use clap::Args;
use serde::Serialize;

use super::{
    CliError, Target, Who,
    output::{Output, at, below, distance, plain, table},
};
use crate::{
    app::App,
    domain::{retention::Retention, state::State, tombstone::Tombstone},
    trash::{Count, KeyPlan, Plan, TrashError, TrashRequest, count},
};

#[derive(Debug, Args)]
pub(super) struct Trash {
    #[command(flatten)]
    target: Target,
    /// Trash the children of this kind along with it (repeatable); without it they stay
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    with: Vec<String>,
    /// Restore window, such as 30d [default: the kind's]
    #[arg(long, allow_hyphen_values = true)]
    retention: Option<String>,
    /// Do it; without this the plan is shown and nothing changes
    #[arg(long)]
    execute: bool,
    #[command(flatten)]
    who: Who,
}

/// The plan with what lies below its prefixes now.
#[derive(Serialize)]
struct CountedPlan {
    dry_run: bool,
    #[serde(flatten)]
    plan: Plan,
    counts: Vec<Count>,
}

impl Trash {
    pub(super) fn is_dry_run(&self) -> bool {
        !self.execute
    }

    pub(super) async fn run(self, app: App, output: Output) -> Result<(), CliError> {
        let retention = self.retention.as_deref().map(Retention::parse).transpose();
        let request = TrashRequest {
            resource: self.target.resolve(&app)?,
            with: app.trash.kinds(self.with.iter().map(String::as_str))?,
            retention: retention.map_err(TrashError::from)?,
            by: self.who.provenance()?,
        };
        if !self.execute {
            let plan = app.trash.plan(&request).await?;
            let counts = count(&app.stores, plan.locations()).await;
            return output.print(&CountedPlan { dry_run: true, plan, counts }, show_plan);
        }
        let trashed = app.trash.trash(&request).await?;
        output.print(&trashed, |trashed| {
            let tombstone = &trashed.tombstone;
            let due = format!("{} ({})", at(tombstone.purge_after), distance(tombstone.purge_after));
            if trashed.already {
                let (resource, state) = (&tombstone.resource, tombstone.state);
                let left = if self.with.is_empty() { "" } else { "; its children are left as they are" };
                if tombstone.state == State::Stuck {
                    return format!("{}{left}", stuck(tombstone));
                }
                let left = left.to_owned() + &not_taken(&trashed.not_taken);
                return format!("{resource} is in the trash already ({state}); purge after {due}{left}");
            }
            let mut lines = vec![format!("trashed {}; purge after {due}", tombstone.resource)];
            lines.extend(trashed.children.iter().map(|child| format!("trashed {} along with it", child.resource)));
            let already = trashed.children_already.iter();
            lines.extend(already.map(|child| format!("{} was in the trash already", child.resource)));
            lines.push(format!("take it back with: reprieve restore {}", tombstone.resource));
            lines.join("\n")
        })
    }
}

/// What of a request would have to be another tombstone's.
fn not_taken(fields: &[&str]) -> String {
    match fields {
        [] => String::new(),
        fields => format!("; another {} is not taken: restore it and trash it again for that", fields.join(" and ")),
    }
}

/// What is in the trash already and waits for somebody.
fn stuck(open: &Tombstone) -> String {
    let why = open.last_error.as_deref().map(|why| format!(": {}", plain(why))).unwrap_or_default();
    let resource = &open.resource;
    format!(
        "{resource} is in the trash already, and its purge is stuck{why}\nmend that, and then: reprieve retry {resource} --execute"
    )
}

/// Objects that are named one by one.
fn show_keys(keys: &KeyPlan) -> String {
    let shared = match (keys.shared, keys.at_least) {
        (0, false) => String::new(),
        (0, true) => ", of which none is known to stay: not all were asked about".to_owned(),
        (1, false) => ", of which 1 stays: another resource names it too".to_owned(),
        (shared, false) => format!(", of which {shared} stay: another resource names them too"),
        (shared, true) => format!(", of which at least {shared} stay: another resource names them too"),
    };
    format!("{}{shared}\n", keys.place)
}

fn show_plan(counted: &CountedPlan) -> String {
    let plan = &counted.plan;
    if let Some(open) = plan.already.as_ref().filter(|open| open.state == State::Stuck) {
        return stuck(open);
    }
    if let Some(open) = &plan.already {
        let due = distance(open.purge_after);
        let not_taken = not_taken(&plan.not_taken);
        return format!(
            "{} is in the trash already ({}), due {due}; nothing to do{not_taken}",
            open.resource, open.state
        );
    }
    let members = plan.members.iter().map(|member| {
        let name = member.name.clone().unwrap_or_default();
        vec![member.resource.to_string(), name, member.retention.to_string()]
    });
    let mut text = format!("would trash:\n{}\n", table(&["resource", "name", "restore window"], members));
    let keys: Vec<&KeyPlan> =
        plan.members.iter().flat_map(|member| &member.recorded).filter(|keys| keys.place.keys > 0).collect();
    if counted.counts.is_empty() && keys.is_empty() {
        text += "\nno objects belong to it\n";
    } else {
        text += "\nand purge after the window:\n";
        if !counted.counts.is_empty() {
            text += &below(&counted.counts);
            text += "\n";
        }
        text.extend(keys.into_iter().map(show_keys));
    }
    let already = plan.children_already.iter().map(|child| format!("{} is in the trash already\n", child.resource));
    text += &already.collect::<String>();
    text + "\nThis was a dry run: nothing has changed. Add --execute to do it."
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::location::{KeyPlace, StoreName};

    #[test]
    fn a_plan_says_what_stays_and_nothing_of_what_it_does_not_know() {
        let place = KeyPlace {
            store: StoreName::parse("main").expect("a name"),
            bucket: "b".into(),
            endpoint: "http://a".into(),
            keys: 4,
        };
        let told = |shared, at_least| {
            let text = show_keys(&KeyPlan { place: place.clone(), shared, at_least });
            text.split_once("of which ").map(|(_, told)| told.trim_end().to_owned())
        };
        assert_eq!(told(0, false), None);
        assert_eq!(told(0, true).as_deref(), Some("none is known to stay: not all were asked about"));
        assert_eq!(told(2, true).as_deref(), Some("at least 2 stay: another resource names them too"));
        assert_eq!(told(1, false).as_deref(), Some("1 stays: another resource names it too"));
        assert_eq!(told(2, false).as_deref(), Some("2 stay: another resource names them too"));
    }
}
