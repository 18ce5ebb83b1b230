//! Who the process runs as: `USER` resolved in the image's `/etc/passwd` and `/etc/group`.

/// Ids of a process, and its home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups; the first is always `gid`.
    pub(crate) groups: Vec<u32>,
    /// From `/etc/passwd` by uid, else `/`.
    pub(crate) home: String,
}

/// A name that the image does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UnknownUser {
    User(String),
    Group(String),
}

/// Resolves `user` (`""`, `name`, `uid`, `name:group`, `uid:gid` …) as Docker does:
///
/// * a name is looked up in `passwd`; digits that are no name there are a uid, of group 0 unless `passwd` knows it;
/// * without a group, the groups that list the user's *name* are its supplementary groups;
/// * with a group, there are none.
///
/// Lines that cannot be parsed are passed over.
pub(crate) fn resolve(user: &str, passwd: &str, group: &str) -> Result<Identity, UnknownUser> {
    let (user_part, group_part) = user.split_once(':').unwrap_or((user, ""));
    let number = |text: &str| text.parse::<u32>().ok().filter(|&id| id <= i32::MAX as u32);
    let wanted = if user_part.is_empty() { "0" } else { user_part };
    let entry = passwd_entries(passwd)
        .find(|entry| entry.name == wanted)
        .or_else(|| number(wanted).and_then(|uid| passwd_entries(passwd).find(|entry| entry.uid == uid)));
    let uid = match (&entry, number(wanted)) {
        (Some(entry), _) => entry.uid,
        (None, Some(uid)) => uid,
        // An image without /etc/passwd still has root.
        (None, None) if wanted == "root" => 0,
        (None, None) => return Err(UnknownUser::User(wanted.to_owned())),
    };
    let mut gid = entry.as_ref().map_or(0, |entry| entry.gid);
    let mut groups = Vec::new();
    if group_part.is_empty() {
        if let Some(entry) = &entry {
            groups = group_entries(group)
                .filter(|candidate| candidate.members.split(',').any(|member| member == entry.name))
                .map(|candidate| candidate.gid)
                .collect();
        }
    } else {
        gid = match group_entries(group).find(|entry| entry.name == group_part) {
            Some(entry) => entry.gid,
            None => match number(group_part) {
                Some(gid) => gid,
                None if group_part == "root" => 0,
                None => return Err(UnknownUser::Group(group_part.to_owned())),
            },
        };
    }
    if let Some(place) = groups.iter().position(|&other| other == gid) {
        groups.remove(place);
    }
    groups.insert(0, gid);
    groups.dedup();
    let home = passwd_entries(passwd)
        .find(|entry| entry.uid == uid)
        .map(|entry| entry.home)
        .filter(|home| !home.is_empty())
        .unwrap_or("/")
        .to_owned();
    Ok(Identity { uid, gid, groups, home })
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// passwd(5): name:password:uid:gid:gecos:home:shell
fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(PasswdEntry { name, uid, gid, home: fields.nth(1).unwrap_or("") })
    })
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// group(5): name:password:gid:member,member
fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(GroupEntry { name, gid, members: fields.next().unwrap_or("") })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nbroken\n4242:x:7:8::/odd:\n";
    const GROUP: &str = "root:x:0:root\napp:x:1001:\nstaff:x:50:app,root\naudio:x:63:app\n77:x:99:\n";

    fn ids(user: &str) -> (u32, u32, Vec<u32>, String) {
        let Identity { uid, gid, groups, home } = resolve(user, PASSWD, GROUP).unwrap();
        (uid, gid, groups, home)
    }

    #[test]
    fn nobody_named_is_root_with_its_groups() {
        assert_eq!(ids(""), (0, 0, vec![0, 50], "/root".into()));
        assert_eq!(ids("root"), ids(""));
    }

    #[test]
    fn a_name_brings_its_group_and_supplementary_groups() {
        assert_eq!(ids("app"), (1000, 1001, vec![1001, 50, 63], "/home/app".into()));
        assert_eq!(ids("1000"), ids("app"));
    }

    #[test]
    fn a_group_replaces_the_supplementary_groups() {
        assert_eq!(ids("app:staff"), (1000, 50, vec![50], "/home/app".into()));
        assert_eq!(ids("1000:1234"), (1000, 1234, vec![1234], "/home/app".into()));
        assert_eq!(ids(":staff"), (0, 50, vec![50], "/root".into()));
    }

    #[test]
    fn unknown_numbers_are_taken_and_unknown_names_refused() {
        assert_eq!(ids("5000"), (5000, 0, vec![0], "/".into()));
        assert_eq!(ids("5000:6000"), (5000, 6000, vec![6000], "/".into()));
        assert_eq!(resolve("ghost", PASSWD, GROUP), Err(UnknownUser::User("ghost".into())));
        assert_eq!(resolve("app:ghosts", PASSWD, GROUP), Err(UnknownUser::Group("ghosts".into())));
        assert_eq!(resolve("-1", PASSWD, GROUP), Err(UnknownUser::User("-1".into())));
        assert_eq!(resolve("4294967295", PASSWD, GROUP), Err(UnknownUser::User("4294967295".into())));
    }

    #[test]
    fn a_name_of_digits_is_a_name_first() {
        assert_eq!(ids("4242"), (7, 8, vec![8], "/odd".into()));
        assert_eq!(ids("app:77").1, 99);
    }

    #[test]
    fn an_image_without_passwd_has_root() {
        assert_eq!(resolve("root:root", "", "").unwrap().groups, [0]);
        assert_eq!(resolve("", "", "").unwrap().home, "/");
    }
}
