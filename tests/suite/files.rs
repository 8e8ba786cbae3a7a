//! Files and folders appear whole or not at all.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tinyonn::files::{StagedFolder, is_used, try_write, write, write_with};
use tinyonn::{Error, Result};

use crate::models::message;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_replaced_whole_or_stays_as_it_was() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("figures.json");
    write(&path, "old").unwrap();
    let half: Result<()> = write_with(&path, |staged| {
        fs::write(staged, "ne").unwrap();
        assert_eq!((staged.parent(), fs::read_to_string(&path).unwrap().as_str()), (path.parent(), "old"));
        Err(Error::setting("figures", "cannot be had", "try again"))
    });
    assert!(message(half).starts_with("`figures`"));
    assert_eq!(
        (fs::read_to_string(&path).unwrap().as_str(), names(dir.path())),
        ("old", vec!["figures.json".to_owned()])
    );
    write(&path, "new").unwrap();
    assert_eq!(
        (fs::read_to_string(&path).unwrap().as_str(), names(dir.path())),
        ("new", vec!["figures.json".to_owned()])
    );
}

#[test]
fn what_cannot_be_written_is_named_with_a_remedy() {
    let dir = TempDir::new().unwrap();
    // Of the folder that is missing, not of a file beside the one to write.
    let refused = message(write(dir.path().join("no/such.json"), ""));
    let folder = dir.path().join("no");
    assert_eq!(refused, format!("{}: there is no such folder; make it, or check the path", folder.display()));
    // A folder of that name.
    fs::create_dir(dir.path().join("taken")).unwrap();
    assert!(message(write(dir.path().join("taken"), "")).contains("taken: "));
    assert!(message(write(Path::new("/"), "")).contains("name the file"));
    assert_eq!(names(dir.path()), ["taken"]);
}

/// Stages a folder of one file, nested.
fn stage(dir: &Path, text: &str) -> StagedFolder {
    let staged = StagedFolder::replacing(dir).unwrap();
    fs::create_dir(staged.path().join("model")).unwrap();
    fs::write(staged.path().join("model/file"), text).unwrap();
    staged
}

fn text(dir: &Path) -> String {
    fs::read_to_string(dir.join("model/file")).unwrap()
}

#[test]
fn a_folder_is_replaced_when_the_new_one_is_whole() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("run");
    for new in ["first", "second"] {
        let old = is_used(&dir).unwrap().then(|| text(&dir));
        let staged = stage(&dir, new);
        assert_eq!(is_used(&dir).unwrap().then(|| text(&dir)), old);
        assert!(message(StagedFolder::replacing(&dir)).contains("another process"));
        drop(staged);
        assert_eq!(is_used(&dir).unwrap().then(|| text(&dir)), old);
        stage(&dir, new).publish().unwrap();
        assert_eq!((text(&dir).as_str(), names(parent.path())), (new, vec!["run".to_owned()]));
    }
    assert!(message(StagedFolder::new(&dir)).contains("not empty"));
}

#[test]
fn a_replacement_that_was_killed_is_undone_or_finished() {
    let parent = TempDir::new().unwrap();
    let [dir, aside] = ["run", ".run.replaced"].map(|name| parent.path().join(name));
    stage(&dir, "old").publish().unwrap();
    // Killed between the two renames: the old folder has no name, the new one not yet.
    fs::rename(&dir, &aside).unwrap();
    drop(stage(&dir, "lost"));
    assert_eq!((text(&dir).as_str(), aside.exists()), ("old", false));
    // Killed before the old one was gone.
    fs::create_dir(&aside).unwrap();
    drop(stage(&dir, "lost"));
    assert_eq!((text(&dir).as_str(), names(parent.path())), ("old", vec!["run".to_owned()]));
}

#[test]
fn a_folder_that_was_put_aside_is_back_before_anything_is_written() {
    let parent = TempDir::new().unwrap();
    let [dir, aside] = ["run", ".run.replaced"].map(|name| parent.path().join(name));
    stage(&dir, "old").publish().unwrap();
    fs::rename(&dir, &aside).unwrap();
    assert!(message(StagedFolder::new(&dir)).contains("not empty"));
    assert_eq!((text(&dir).as_str(), names(parent.path())), ("old", vec!["run".to_owned()]));
    fs::rename(&dir, &aside).unwrap();
    StagedFolder::restore(&dir).unwrap();
    assert_eq!((text(&dir).as_str(), names(parent.path())), ("old", vec!["run".to_owned()]));
    // Where nothing was put aside, nothing is done.
    StagedFolder::restore(&dir).unwrap();
    StagedFolder::restore(parent.path().join("none")).unwrap();
    assert_eq!(names(parent.path()), ["run"]);
}

/// Mode bits of a file; there are none elsewhere.
#[cfg(unix)]
fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Through a temporary file of a library's (mode 0600), through ours, or straight: every new file has the mode of the umask. (Which is the
/// process's own, so that a test cannot set it: a plain file shows it.)
#[cfg(unix)]
#[test]
fn every_file_has_the_mode_of_the_umask() {
    let dir = TempDir::new().unwrap();
    let [plain, whole, temporary] = ["plain", "whole", "temporary"].map(|name| dir.path().join(name));
    fs::write(&plain, "").unwrap();
    write(&whole, "").unwrap();
    let replaced = |staged: &Path| {
        let file = tempfile::NamedTempFile::new_in(dir.path()).unwrap();
        assert_eq!(mode(file.path()), 0o600);
        file.persist(staged).map(drop).map_err(|e| Error::io(staged, e.error))
    };
    write_with(&temporary, replaced).unwrap();
    assert_eq!([mode(&whole), mode(&temporary)], [mode(&plain); 2]);
    // And a replaced one as well, whoever wrote it before.
    fs::set_permissions(&whole, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    write(&whole, "").unwrap();
    assert_eq!(mode(&whole), mode(&plain));
}

/// What was named is a link: what it leads to is written, on the file system where that lies, and the link stays.
#[cfg(unix)]
#[test]
fn a_link_stays_and_what_it_leads_to_is_written() {
    let [here, there] = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let [link, real] = [here.path().join("run"), there.path().join("elsewhere")];
    std::os::unix::fs::symlink(&real, &link).unwrap();
    // At first it leads to nothing.
    for (link, new) in [(&link, "first"), (&link, "second"), (&link.join(""), "third")] {
        let staged = stage(link, new);
        assert_eq!(staged.path().parent(), Some(there.path()));
        staged.publish().unwrap();
        assert!(here.path().join("run").is_symlink() && text(&real) == new);
    }
    assert_eq!(tinyonn::files::states_of(&link).unwrap(), there.path().join(".elsewhere.states"));
    assert_eq!((names(here.path()), names(there.path())), (vec!["run".to_owned()], vec!["elsewhere".to_owned()]));

    let file = here.path().join("figures.json");
    std::os::unix::fs::symlink(there.path().join("real.json"), &file).unwrap();
    for new in ["first", "second"] {
        write(&file, new).unwrap();
        assert!(file.is_symlink());
        assert_eq!(fs::read_to_string(there.path().join("real.json")).unwrap(), new);
    }
    std::os::unix::fs::symlink("round", here.path().join("round")).unwrap();
    assert!(message(StagedFolder::new(here.path().join("round"))).contains("leads back to itself"));
}

/// Hours of work are not removed because a name is taken, or cannot be given.
#[test]
fn what_is_finished_and_cannot_have_its_name_stays() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("run");
    for number in 1..3 {
        let staged = StagedFolder::new(&dir).unwrap();
        fs::write(staged.path().join("result"), "whole").unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("letter.txt"), "dear").unwrap();
        let kept = parent.path().join(format!("run-finished-{number}"));
        let said = message(staged.publish());
        assert!(said.contains("not empty") && said.contains(&kept.display().to_string()), "{said}");
        assert_eq!(fs::read_to_string(kept.join("result")).unwrap(), "whole");
        fs::remove_dir_all(&dir).unwrap();
    }
    assert_eq!(names(parent.path()), ["run-finished-1", "run-finished-2"]);
}

#[test]
fn what_could_not_be_written_in_the_end_is_refused_at_first() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image");
    try_write(&path).unwrap();
    assert_eq!(names(dir.path()), Vec::<String>::new());
    assert!(message(try_write(dir.path().join("no/image"))).contains("there is no such folder"));
    assert!(message(try_write(dir.path())).contains("no file"));
    #[cfg(unix)]
    assert!(message(try_write("/dev/null")).contains("no file"));
}
